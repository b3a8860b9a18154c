"""What the studio foretells, held against what comes of it."""
