"""A training while it runs: its epochs, and trials of them."""
