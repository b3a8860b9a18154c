"""Proof of what files are and who made them: manifests, signatures, encryption; importing it loads no torch."""
