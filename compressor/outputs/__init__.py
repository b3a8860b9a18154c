"""What a model's outputs say: classes, labels or numbers, where they lie, and what of them counts."""
