"""Benchmarks of verdicts: whether a difference is claimed that is not there, and what else became of a file."""
