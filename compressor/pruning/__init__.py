"""What of a structure goes: by which score, how much, at what cost and what loss."""
