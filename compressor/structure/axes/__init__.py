"""The axes that tensor dimensions are made of, followed through one forward pass, and the groups they form."""
