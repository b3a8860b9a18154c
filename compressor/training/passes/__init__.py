"""Passes over the training data: how many there are, what their batches lose, and a test of rates on a few of them."""
