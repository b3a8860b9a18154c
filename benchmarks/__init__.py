"""Measurements of the package: each is one command, `python -m benchmarks.NAME` from the project's folder."""
