"""What hangs together in a network, and whether it survives being narrowed."""
