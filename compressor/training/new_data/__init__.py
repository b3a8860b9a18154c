"""Trainings that go on with new data: what they read of them and of the old ones, and what that brought."""
