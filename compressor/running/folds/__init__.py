"""Cross-validation: what a fold is, how one reference stands in several, and a run for each of them."""
