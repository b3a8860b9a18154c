"""Loaders as they are: what they keep from pass to pass, and passes that end with it as it was."""
