"""The encoders: a bag of words, a transformer, both beside each other, and a frozen transformer."""
