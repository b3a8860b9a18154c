"""Passes over data that leave it as it was, and loaders made of other loaders."""

from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from typing import Any

from compressor.streams.own_state import OwnState

# The way out for batches with more than inputs and a target.
KEEP_TWO = (
    "to leave weights, names or numbers of samples out, Mapped(loader, lambda batch: (batch[0], batch[1])) of "
    "compressor.streams.passes; for the loss to have them, "
    'Mapped(loader, lambda batch: (batch[0], {"target": batch[1], "weight": batch[2]}))'
)


def one_pass(data: Iterable[Any]) -> Generator[Any, None, None]:
    """The batches of `data` as they come.

    What it keeps is as before when the pass ends or is given up: two passes under one torch seed are the same, and no
    reader finds what another one left.
    """
    own = OwnState.of(data)
    with own.kept():
        own.begin_()
        yield from data


class Mapped:
    """The batches of `data`, each as `function` makes it anew.

    For batches that are not (inputs, targets): `Mapped(loader, lambda batch: (batch[0], batch[1]))` leaves a third
    element out, `Mapped(loader, lambda batch: (batch[0], {"target": batch[1], "weight": batch[2]}))` hands it to the
    loss with the targets. Around a dataset it is a dataset: `function` makes each sample anew.
    """

    def __init__(self, data: Iterable[Any], function: Callable[[Any], Any]) -> None:
        self.data, self.function = data, function

    def __iter__(self) -> Iterator[Any]:
        return map(self.function, self.data)

    def __getitem__(self, index: Any) -> Any:
        return self.function(self.data[index])  # type: ignore[index] # of datasets; a loader raises TypeError itself

    def __len__(self) -> int:
        """As many batches as `data` has. Raises TypeError where that does not say."""
        return len(self.data)  # type: ignore[arg-type] # list() and others ask, and take the TypeError for an answer

    @property
    def fingerprint(self) -> str | None:
        """What `data` says that it holds; what becomes of it follows from `function`, which a run knows."""
        return _fingerprint(self.data)


class Made:
    """What `make()` gives, anew at every pass: `Made(lambda: read_shards(paths))` of a function that is a generator."""

    def __init__(self, make: Callable[[], Iterable[Any]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return iter(self.make())


class First:
    """The first `count` (>= 1) batches of `data`."""

    def __init__(self, data: Iterable[Any], count: int) -> None:
        self.data, self.count = data, count

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.data), self.count)

    def __len__(self) -> int:
        """How many batches there are. Raises TypeError where `data` does not say."""
        return min(self.count, len(self.data))  # type: ignore[arg-type] # list() and others take the TypeError for an answer

    @property
    def fingerprint(self) -> str | None:
        """What `data` says that it holds."""
        return _fingerprint(self.data)


def _fingerprint(data: Iterable[Any]) -> str | None:
    said = getattr(data, "fingerprint", None)
    return said if isinstance(said, str) else None
