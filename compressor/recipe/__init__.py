"""Recipes: YAML to stages and back, with errors that name the line."""
