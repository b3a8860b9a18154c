"""Channels that others can stand in for: which they are, and what the layers that read them make of the others."""
