"""The training data as a training reads it: epochs of known length that follow from (seed, view), and what is told.

A pass over data follows from the global random generators, which `replayed` seeds, from what the loader keeps itself
(`compressor.streams`), and from nothing else that could be replayed: what differs between two passes all the same is
found by reading the first batches twice.
"""

import random
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset

from compressor.batches import Batch, Batches, split_batch
from compressor.errors import StageError
from compressor.progress.bars import progress_bar
from compressor.streams.own_state import Counters, OwnState
from compressor.tensor_files import raw_bytes
from compressor.training.replay import replayed

# Batches that are read twice: what draws from a state that nobody seeds differs at once.
_COMPARED = 2
# Batches of a loader of somebody's own that are counted, whatever it says of its length.
_COUNTED = 64
# How far a stream that says no length is read before it is taken for one without an end.
LONGEST = 100_000  # batches
PATIENCE_SECONDS = 600.0


@dataclass(kw_only=True)
class Stream:
    """The training data, whose epoch has `batches` batches; None where it has no end.

    `begins` is a checksum of its first batches, "" where two passes under one seed differ. `remarks` are what is to be
    told of it.
    """

    data: Iterable[Any]
    own: OwnState
    seed: int
    batches: int | None
    begins: str
    remarks: list[str] = field(default_factory=list)
    _endless: "_Endless | None" = None

    @classmethod
    def of(cls, data: Iterable[Any], seed: int, *, counted: bool = True) -> "Stream":
        """How `data` is read. Raises StageError where there is no batch.

        Data that do not say how long they are have no end where they are not to be `counted`; where one comes all the
        same, they begin again.
        """
        own = OwnState.of(data)
        batches, remark = _length(data, own, seed) if counted or said_length(data) is not None else (None, "")
        begins = _beginning(data, own, seed)
        twice = _beginning(data, own, seed)
        stream = cls(data=data, own=own, seed=seed, batches=batches, begins=begins if begins == twice else "")
        stream.remarks += [text for text in (own.says(), remark) if text]
        if not stream.begins:
            stream.remarks.append(
                "two passes under one random seed differ, so a training that is killed and goes on does not end with "
                "the bits of one that was not; draw from torch's, NumPy's or Python's global generators, or from one "
                "that is an attribute of the dataset"
            )
        return stream

    @contextmanager
    def kept(self) -> Iterator[None]:
        """What the loader keeps is afterwards as before; its counters go on from epoch to epoch within."""
        with self.own.kept():
            try:
                yield
            finally:
                self._endless = None

    def counters(self) -> Counters:
        """What the loader has counted, for a snapshot."""
        return self.own.counters()

    def go_on_(self, counters: Counters) -> None:
        """Lets the loader count on from what a snapshot holds."""
        self.own.set_counters_(counters)

    def epoch(self, epoch: int, view: int, batches: int) -> Iterator[Batch]:
        """The batches of epoch number `epoch`, `batches` of them or fewer; the global generators are seeded.

        Data without an end go on where the epoch before ended, however often this training was killed since.
        """
        if self.batches is None:
            if self._endless is None or self._endless.taken != epoch * batches:
                self._endless = _Endless(self.data, self.own, self.seed)
                self._endless.skip(epoch * batches)
            yield from self._endless.take(batches)
            return
        self.own.begin_(view)
        count = 0
        passing = iter(self.data)
        for batch in islice(passing, batches):
            count += 1
            yield split_batch(batch)
        if batches < self.batches:
            return
        if count < batches:
            self.remark(f"the data say that they have {batches} batches, and give {count}")
        elif not _is_exact(self.data) and next(passing, None) is not None:
            self.remark(f"the data say that they have {batches} batches, and go on: an epoch ends after those")

    def remark(self, text: str) -> None:
        """Adds `text` to the remarks, once."""
        if text not in self.remarks:
            self.remarks.append(text)


class _Endless:
    """One pass through data without an end, with random numbers that nobody else draws from: it can be read again."""

    def __init__(self, data: Iterable[Any], own: OwnState, seed: int) -> None:
        self._data = data
        self.taken = 0
        with replayed(seed, 0):
            own.begin_(0)
            self._passing = iter(data)
            self._randomness = _Randomness.now()

    def skip(self, count: int) -> None:
        for _ in self.take(count):
            pass

    def take(self, count: int) -> Iterator[Batch]:
        for _ in range(count):
            outside = _Randomness.now()
            self._randomness.restore_()
            try:
                batch = next(self._passing, None)
                if batch is None:
                    self._passing = iter(self._data)
                    batch = next(self._passing, None)
                self._randomness = _Randomness.now()
            finally:
                outside.restore_()
            if batch is None:
                return
            self.taken += 1
            yield split_batch(batch)


@dataclass(frozen=True, kw_only=True)
class _Randomness:
    """The states of the global generators from which data are drawn: Python's, NumPy's and torch's on the CPU."""

    python: Any
    numpy: Any
    torch: Tensor

    @classmethod
    def now(cls) -> "_Randomness":
        return cls(
            python=random.getstate(),
            numpy=np.random.get_state(),  # noqa: NPY002 - augmentations draw from the global state
            torch=torch.get_rng_state(),
        )

    def restore_(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002 - as above
        torch.set_rng_state(self.torch)


def batches_in(data: Iterable[Any], seed: int) -> int:
    """How many batches an epoch of `data` has, at least 1; what does not say so is counted under `seed`.

    Raises StageError for data without an end.
    """
    batches, _ = _length(data, OwnState.of(data), seed)
    if batches is None:
        raise endless("the training data")
    return batches


def endless(what: str) -> StageError:
    """The refusal of data that do not end."""
    return StageError(
        f"{what} did not end within {LONGEST} batches or {PATIENCE_SECONDS:.0f} s, and an epoch is a pass over them; "
        "set steps=, give them a __len__ that says how many batches an epoch has, or end them, as "
        "itertools.islice does"
    )


def ends(data: Iterable[Any]) -> bool:
    """Whether a pass over `data` comes to an end within a limit; data that say how long they are do."""
    return said_length(data) is not None or _count(data, OwnState.of(data), 0, LONGEST) is not None


def _length(data: Iterable[Any], own: OwnState, seed: int) -> tuple[int | None, str]:
    """How many batches an epoch has, None without an end, and what is to be told of it."""
    said = said_length(data)
    if said is not None and _is_exact(data):
        return max(1, said), ""
    if said is None:
        return _count(data, own, seed, LONGEST), ""
    found = _count(data, own, seed, max(_COUNTED, 4 * said) if said <= _COUNTED else _COUNTED)
    if found == said or (found is None and said > _COUNTED):
        return said, ""
    if found is None:
        if said < 1:
            return None, f"the data say that they have {said} batches, and have no end"
        return said, f"the data say that they have {said} batches, and go on: an epoch ends after those"
    return found, f"the data say that they have {said} batches, and give {found}, which is what counts"


def said_length(data: Iterable[Any]) -> int | None:
    """How many batches `data` say that they have, None where they do not say."""
    try:
        return len(data)  # type: ignore[arg-type] # the except is for those without
    except TypeError:
        return None


def _is_exact(data: Iterable[Any]) -> bool:
    """Whether what `data` say of their length is right by construction."""
    if type(data) in (Batches, list, tuple):
        return True
    if type(data) is not DataLoader or isinstance(data.dataset, IterableDataset):
        return False
    # Samplers of torch say how long they are; those of somebody's own may say anything.
    return all(type(part).__module__.startswith("torch.") for part in _samplers(data))


def _samplers(loader: DataLoader[Any]) -> list[Any]:
    return [part for part in (loader.sampler, loader.batch_sampler) if part is not None]


def _count(data: Iterable[Any], own: OwnState, seed: int, most: int) -> int | None:
    """How many batches a pass gives, at least 1; None where there are more than `most`, or it takes too long."""
    started, count = monotonic(), 0
    with replayed(seed, 0), own.kept(), progress_bar(desc="counting batches", unit="batch") as bar:
        own.begin_(0)
        for _ in data:
            count += 1
            bar.update()
            if count > most or monotonic() - started > PATIENCE_SECONDS:
                return None
    return max(1, count)


def _beginning(data: Iterable[Any], own: OwnState, seed: int) -> str:
    state = 0
    with replayed(seed, 0), own.kept():
        own.begin_(0)
        for batch in islice(data, _COMPARED):
            for leaf in tree_leaves(batch):
                state = zlib.crc32(raw_bytes(leaf) if isinstance(leaf, Tensor) else repr(leaf).encode(), state)
    return f"{state:08x}"
