"""Encoders: a bag of words, a transformer, a frozen one."""
