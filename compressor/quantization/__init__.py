"""Numbers of few bits: their ranges, their rounding, and the ONNX graphs that hold them."""
