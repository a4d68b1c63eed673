"""Exports a trained encoder to ONNX graphs in several precisions, and measures each."""
