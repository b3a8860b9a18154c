"""ONNX files: exported from torch, verified, cleaned, read from elsewhere."""
