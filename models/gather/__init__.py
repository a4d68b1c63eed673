"""The next training data, from feedback and the last."""
