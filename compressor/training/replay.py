"""Work whose random choices follow from a seed, and which leaves the caller's random states and modes as they were."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from compressor.storage import sha256


@contextmanager
def kept_randomness() -> Iterator[None]:
    """Leaves the global random states of torch, numpy and Python as they were."""
    ours, theirs = random.getstate(), np.random.get_state()  # noqa: NPY002 - augmentations draw from the global state
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(ours)
            np.random.set_state(theirs)  # noqa: NPY002 - the same


@contextmanager
def replayed(seed: int, view: int) -> Iterator[None]:
    """A stretch in which every random choice follows from (seed, view); the states are as before afterwards."""
    with kept_randomness():
        number = int(sha256(f"{seed}/{view}".encode())[:15], 16)
        torch.manual_seed(number)
        np.random.seed(number % 2**32)  # noqa: NPY002 - augmentations draw from the global state
        random.seed(number)
        yield


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Leaves each module in training or evaluation mode as it was."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
