"""Matplotlib as the documents need it: the same picture from the same numbers, byte by byte."""

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "compressor"

import matplotlib.pyplot as plt  # noqa: E402 - the settings come first

__all__ = ["plt"]
