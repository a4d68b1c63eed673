"""Other people's systems, each behind the same protocol."""
