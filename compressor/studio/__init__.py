"""The studio: a local page on which a person sees where the time goes, and chooses what goes."""
