"""Weights that share few values: codebooks by k-means, and how they begin."""
