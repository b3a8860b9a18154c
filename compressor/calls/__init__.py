"""ONNX files called on samples in rows: brought to where a file has them, in as many calls and steps as it takes."""
