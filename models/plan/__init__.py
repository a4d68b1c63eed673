"""Plans a training on one's own data: what was read, which settings follow, what it will cost."""
