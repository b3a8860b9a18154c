"""Drafts: one with its journal, and the shelf that holds everybody's."""
