"""Samples parted in two, the same way for the same seed, with every class on both sides where there are some of it."""

import torch
from torch import Tensor


def strata_of(targets: Tensor) -> list[int] | None:
    """The classes of `targets` as a split keeps them; None where they are none, or one is seen once."""
    if targets.ndim != 1 or targets.is_floating_point():
        return None
    counts = torch.bincount(targets - targets.min())
    # A class seen once cannot be on both sides of a split.
    return None if int(counts[counts > 0].min()) < 2 else [int(target) for target in targets]


def parted(indices: list[int], size: int, strata: list[int] | None, seed: int) -> tuple[list[int], list[int]]:
    """(the rest, `size` of `indices`), each in order. Raises ValueError where nothing would be left."""
    from sklearn.model_selection import train_test_split

    labels = None if strata is None else [strata[index] for index in indices]
    classes = len(set(labels)) if labels else 0
    if size >= len(indices):
        raise ValueError(f"cannot hold out {size} of {len(indices)} samples; give more data or a smaller fraction")
    if size < classes or len(indices) - size < classes:
        labels = None
    rest, held_out = train_test_split(indices, test_size=size, random_state=seed, stratify=labels)
    return sorted(rest), sorted(held_out)
