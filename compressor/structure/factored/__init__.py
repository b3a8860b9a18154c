"""Layers as chains of thinner ones, whose product has a low rank: their form, and how they take a layer's place."""
