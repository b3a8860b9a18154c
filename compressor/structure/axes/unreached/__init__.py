"""What no call of a model reaches: who could read it, and the widths that it could meet there."""
