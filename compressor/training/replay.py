"""Work whose random choices follow from a seed and a view, and which leaves the model's modes as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from compressor.storage import sha256
from compressor.structure.calling.draws import seeded


@contextmanager
def replayed(seed: int, view: int) -> Iterator[None]:
    """A stretch in which every random choice follows from (seed, view); the states are as before afterwards."""
    with seeded(int(sha256(f"{seed}/{view}".encode())[:15], 16)):
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
