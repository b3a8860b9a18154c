"""A model made ready before its weights or its structure change."""
