"""What computes an answer. It knows no web, no settings and no environment."""
