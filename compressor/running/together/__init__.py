"""A run under torchrun: rank 0 runs it, and the others help with its trainings."""
