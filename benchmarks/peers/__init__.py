"""The tools of other people that the package is measured beside."""
