"""Label indexes as they are searched."""
