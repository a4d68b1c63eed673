"""Readers of data, splits, tokens."""
