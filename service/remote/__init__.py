"""What the Python client is made of."""
