"""Training: from (text, labels) pairs to a measured, sealed bundle."""
