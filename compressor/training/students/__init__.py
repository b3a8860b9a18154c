"""Separate networks that take the place of the one they are taught by: whether they fit it."""
