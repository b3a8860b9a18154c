"""A finished run done again in part, to see whether the same bytes come of it."""
