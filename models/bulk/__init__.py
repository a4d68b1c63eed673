"""A million texts at once: answers by file, and label vectors for other engines."""
