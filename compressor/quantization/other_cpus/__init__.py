"""What the file computes on CPUs that this machine is not."""
