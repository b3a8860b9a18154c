"""Layers as products of thinner ones: which decompositions, which ranks, what they lose and what they cost."""
