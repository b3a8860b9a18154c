"""Which layer gets how many bits, and which goes back to float."""
