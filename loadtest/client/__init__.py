"""The HTTP client that makes the load, and its record of every query."""
