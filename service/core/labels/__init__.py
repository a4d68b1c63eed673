"""Finds labels by row and by id, and searches under filters."""
