"""Milliseconds of operators measured in ONNX Runtime, and of whole models predicted from them."""
