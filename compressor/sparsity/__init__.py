"""Single weights, blocks and rows at zero: by which score, in which pattern, and on which schedule."""
