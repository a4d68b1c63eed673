"""The HTTP client that makes the load, and what it notes of each query."""
