"""The recipe to ship, found: a tree of recipes searched by successive halving on several objectives at once."""
