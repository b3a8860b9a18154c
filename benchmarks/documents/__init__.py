"""What writes the documents that hold results: `python -m benchmarks.documents`."""
