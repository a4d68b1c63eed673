"""Refuses requests by their headers in an overload, and lets connections rest: decision 0024."""
