"""The studio: what it foretells against what comes of it, how fast it answers many, and its pictures for the docs."""
