"""Files from elsewhere brought into the form that is worked on: float32, a free batch, ONNX's own operators."""
