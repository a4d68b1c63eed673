"""Computes answers from a bundle. Nothing here knows HTTP, settings or the environment."""
