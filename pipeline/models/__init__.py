"""Networks, what is known of them, and the engine that runs them."""
