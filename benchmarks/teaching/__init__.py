"""Which way of being taught is worth its minutes."""
