"""Whose turn it is on this machine: one timing at a time, and work that pauses at its next batch meanwhile."""
