"""Looking before compressing: what can go and what is locked, where the time is, what this machine can do."""
