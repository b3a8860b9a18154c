"""What the tests of searches share."""

from workbench.searches import fake_runs  # noqa: F401 - pytest finds fixtures by their names here
