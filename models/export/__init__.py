"""From a trained encoder to ONNX graphs in several precisions, each measured."""
