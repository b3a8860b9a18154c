"""How a model is called when its structure is looked at: on what, under which seed, and what it hands back."""
