"""What people and analysts open: tables, pictures, catalogue entries."""
