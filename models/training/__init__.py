"""The loop that trains any method, and the parts that methods are built from."""
