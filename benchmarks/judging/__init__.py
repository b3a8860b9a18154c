"""Benchmarks of verdicts: how often a difference is claimed that is not there."""
