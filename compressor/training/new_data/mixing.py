"""New data beside old: batches of both in turns, and a part of the new ones held out for decisions."""

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from compressor.batches import Batches, as_tensors
from compressor.errors import WorkloadError
from compressor.given.loaders import sets_of
from compressor.given.notices import WorkloadWarning

# The part of new data that no training sees: its epochs are chosen by it.
HELD_OUT = 0.1
_BATCH = 128
WANTED = (
    "data is what the model goes on learning from, batches of (inputs, targets) in a DataLoader, a list or Batches, or "
    "a pair (inputs, targets) of all samples"
)


@dataclass(frozen=True, kw_only=True)
class NewData:
    """What a training reads of new data, and the tenth of them that its epochs are chosen by."""

    train: Iterable[Any]
    validation: Iterable[Any]

    @classmethod
    def of(cls, data: Any) -> "NewData":
        """`data` in two parts, always the same ones. Raises ValueError for what is no data with targets."""
        if isinstance(data, Tensor | np.ndarray):
            raise ValueError(f"{WANTED}; got inputs alone, {tuple(data.shape)}: give each of them its target")
        try:
            if _is_pair(data) or (isinstance(data, Dataset) and not isinstance(data, IterableDataset)):
                data = Batches(data, batch_size=_BATCH, shuffle=True)
            if isinstance(data, Batches):
                return _parted(data)
            with warnings.catch_warnings():
                # That a part is held out is what is wanted here.
                warnings.simplefilter("ignore", WorkloadWarning)
                sets = sets_of(
                    {"train": data, "test": data},
                    model=None,
                    batch_size=_BATCH,
                    validation_fraction=HELD_OUT,
                    calibration_samples=1,
                    seed=0,
                )
        except (WorkloadError, ValueError, TypeError) as error:
            raise ValueError(f"{WANTED}; what is given cannot be read as training data: {error}") from error
        return cls(train=sets.train, validation=sets.validation)


class Mixed:
    """The batches of `new`, and between them so many of `old` that these are the part `replay` of all; old ones recur.

    What both draw follows from torch's seed in a pass, as they do alone.
    """

    def __init__(self, new: Iterable[Any], old: Iterable[Any], replay: float) -> None:
        self.new, self.old, self.replay = new, old, replay

    def __iter__(self) -> Iterator[Any]:
        old, given = _again(self.old), 0
        for number, batch in enumerate(self.new, start=1):
            yield batch
            while given < self._due(number):
                given += 1
                yield next(old)

    def __len__(self) -> int:
        """How many batches there are. Raises TypeError where the new data do not say."""
        number = len(self.new)  # type: ignore[arg-type] # list() and others take the TypeError for an answer
        return number + self._due(number)

    def _due(self, new: int) -> int:
        """How many old batches belong to so many new ones."""
        return math.floor(new * self.replay / (1 - self.replay) + 1e-9)


def _again(data: Iterable[Any]) -> Iterator[Any]:
    """Pass after pass over `data`. Raises WorkloadError where a pass gives nothing."""
    while True:
        count = 0
        for batch in data:
            count += 1
            yield batch
        if not count:
            raise WorkloadError("the old training data have no batches to replay; set replay=0.0, or give some")


def _parted(data: Batches) -> NewData:
    """`data` in two parts, read as they are, the held out one without augmentation and in its order."""
    count = len(data.indices)
    held = max(1, round(count * HELD_OUT))
    if held >= count:
        raise ValueError(f"there are {count} samples, and none of them can be held out for decisions; give more")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    parts = [data.indices[part.sort().values].tolist() for part in (order[held:], order[:held])]
    train = Batches(
        data.samples,
        indices=parts[0],
        batch_size=data.batch_size,
        shuffle=data.shuffle,
        transform=data.transform,
        augment=data.augment,
        drop_last=data.drop_last,
    )
    held_out = Batches(data.samples, indices=parts[1], batch_size=data.batch_size, transform=data.transform)
    return NewData(train=train, validation=held_out)


def _is_pair(data: Any) -> bool:
    if not (isinstance(data, tuple) and len(data) == 2):
        return False
    first = as_tensors(data)[1]
    return isinstance(first, Tensor)
