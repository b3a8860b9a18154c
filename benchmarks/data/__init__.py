"""The data that benchmarks read, and the networks that are trained on it."""
