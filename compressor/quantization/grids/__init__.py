"""Integers for real numbers: scales, zero points and the rounding onto them."""
