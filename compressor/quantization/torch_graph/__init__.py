"""An ONNX graph as a torch module whose numbers are the file's, so that it can learn."""
