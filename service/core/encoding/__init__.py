"""Turns texts into vectors: cleaning, tokens, ONNX Runtime and devices."""
