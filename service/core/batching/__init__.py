"""Decides which requests are admitted, which wait, and which form the next batch."""
