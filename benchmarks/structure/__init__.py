"""What choosing and pruning structure brings, and what it takes."""
