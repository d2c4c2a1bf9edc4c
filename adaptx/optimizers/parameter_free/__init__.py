"""Methods that find their own rate."""
