"""What metrics are made of: rows of single samples, and the score of many rows; one file a family."""
