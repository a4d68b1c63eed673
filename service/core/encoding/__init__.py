"""From a text to its vector: cleaning, tokens, ONNX Runtime, devices."""
