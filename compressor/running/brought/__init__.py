"""What stages bring along, looked at before any work."""
