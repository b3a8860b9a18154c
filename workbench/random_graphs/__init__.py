"""ONNX graphs grown at random, and what quantization has to keep of them."""
