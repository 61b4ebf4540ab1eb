"""Windows, strips and ground areas: where pixels are, never what they hold."""
