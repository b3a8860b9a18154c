"""Where quantizers stand in a graph, for every form that ONNX Runtime runs fast."""
