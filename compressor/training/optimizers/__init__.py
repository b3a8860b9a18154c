"""Which optimizer trains a model, at which rate and in which course, and how a rate is found by a short test."""
