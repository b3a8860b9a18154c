"""ONNX files that Python packages ship, quantized by the defaults: what they keep of their decisions, and how fast."""
