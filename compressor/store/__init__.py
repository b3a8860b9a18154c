"""Finished stages by what they were made of, shared by every command on this machine."""
