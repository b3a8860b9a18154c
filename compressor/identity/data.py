"""Which data a set holds: all of it, from memory where it lies there, else by reading it once from end to end.

What is drawn at random while it is read is drawn from one seed, so that the same set reads the same again. A dataset or
loader that takes long to read may say what it holds: its attribute `fingerprint`, a text that changes with its content.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from time import monotonic
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Sampler, Subset, TensorDataset

from compressor.batches import Batches
from compressor.errors import WorkloadError
from compressor.identity.values import Digest, Identifier
from compressor.progress.bars import progress_bar
from compressor.storage import sha256
from compressor.streams.own_state import OwnState
from compressor.training.replay import replayed
from compressor.training.streams import said_length

# How far a stream that says no length is read. What is not known is only worked anew: less than a training takes.
_LONGEST = 20_000  # batches
_PATIENCE_SECONDS = 120.0
_COMPARED = 2  # items that are read again: what draws from a state of its own differs at once
_NUMBERS = (int, float, bool)
_FEW = 200
_LOADER = ("batch_size", "drop_last", "sampler", "batch_sampler", "collate_fn", "worker_init_fn", "num_workers")
_PLAIN = (Tensor, np.ndarray, int, float, bool, str, bytes, type(None))


class DataIdentifier:
    """Tells sets of data by their content; a dataset that several sets share is read once.

    `says` collects what their loaders keep themselves.
    """

    def __init__(self, identifier: Identifier, *, progress: bool) -> None:
        self._identifier, self._progress = identifier, progress
        self._read: dict[int, tuple[Any, Digest]] = {}
        self.says: dict[str, str] = {}

    def digest(self, name: str, data: Iterable[Any]) -> Digest:
        """What the set called `name` holds, and how it hands it out.

        Unknown is what cannot be read twice, and what has no end. Raises WorkloadError where it cannot be read from end
        to end. What it keeps of its own, such as generators, is as before then.
        """
        own = OwnState.of(data)
        if said := own.says():
            self.says[name] = said
        # From where a generator of its own starts plays no part: every pass seeds it.
        with replayed(0, 0), own.kept():
            own.begin_(0)
            return self._digest(name, data)

    def _digest(self, name: str, data: Iterable[Any]) -> Digest:
        samples, settings = _taken_apart(data)
        said = getattr(samples, "fingerprint", None)
        memory = _in_memory(samples)
        # What else there is counts its passes, keeps files open, remembers: of that, only what it does is looked at.
        doing = None if memory else [type(samples), _callables(samples)]
        how = self._identifier.digest([type(data), settings, doing])
        if isinstance(said, str) and not how.unknown:
            held = self._identifier.digest(said)
        elif memory and not how.unknown:
            held = self._identifier.digest(samples)
        else:
            # What cannot be looked into is at work while its batches are read.
            held = self._content(name, data if how.unknown else samples, batches=bool(how.unknown) or samples is data)
        return Digest(sha256(f"{how.text} {held.text}".encode())[:32], held.unknown)

    def _content(self, name: str, samples: Any, *, batches: bool) -> Digest:
        if id(samples) not in self._read:
            self._read[id(samples)] = samples, self._passed(name, samples, batches=batches)
        return self._read[id(samples)][1]

    def _passed(self, name: str, samples: Any, *, batches: bool) -> Digest:
        if isinstance(samples, Iterator):
            return Digest("", ("an iterator, which can be read only once",))
        digests: list[str] = []
        started = monotonic()
        own = OwnState.of(samples)
        numbers = [_numbers(own)]
        with replayed(0, 0), own.kept():
            own.begin_(0)
            items = _items(name, samples, batches=batches)
            for item in progress_bar(items, desc=f"reading {name}", unit="item", shown=self._progress):
                found = self._identifier.passing(item)
                if found.unknown:
                    return Digest("", found.unknown)
                digests.append(found.text)
                if batches and said_length(samples) is None and _too_long(len(digests), monotonic() - started):
                    return Digest(
                        "",
                        (f"a stream that did not end after {len(digests)} batches (give it a __len__ or fingerprint)",),
                    )
            numbers.append(_numbers(own))
        with replayed(0, 0), own.kept():
            own.begin_(0)
            again = [
                self._identifier.passing(item).text
                for item in islice(_items(name, samples, batches=batches), _COMPARED)
            ]
            numbers.append(_numbers(own))
        if again != digests[:_COMPARED]:
            return Digest("", ("data that differ from pass to pass under one random seed",))
        return Digest(sha256(f"{' '.join(digests)} {_settings(*numbers)}".encode()))


def _numbers(own: OwnState) -> dict[str, str]:
    """The numbers that a set and what it is made of keep, lists of a few included, as texts by name."""
    return {
        f"{path}.{name}": repr(value)
        for path, keeper in own.counting.items()
        for name, value in vars(keeper).items()
        if type(value) in _NUMBERS
        or (type(value) in (list, tuple) and len(value) <= _FEW and {*map(type, value)} <= {*_NUMBERS})
    }


def _settings(before: dict[str, str], after: dict[str, str], again: dict[str, str]) -> list[tuple[str, str]]:
    """Of the numbers that a set keeps those that passes do not change: what they say may show in a later pass alone.

    `before` and `after` a whole pass, and after the beginning of another one (`again`).
    """
    return sorted(
        (name, value) for name, value in after.items() if again.get(name) == value and before.get(name, value) == value
    )


def _too_long(count: int, seconds: float) -> bool:
    return count >= _LONGEST or seconds > _PATIENCE_SECONDS


def _taken_apart(data: Any) -> tuple[Any, Any]:
    """The samples of `data` before they are drawn and changed, and all that decides how they are."""
    if type(data) is Batches:
        return data.samples, {key: value for key, value in vars(data).items() if key != "samples"}
    if isinstance(data, DataLoader):
        settings = {name: _without(data.dataset, getattr(data, name, None)) for name in _LOADER}
        # Classes of the user's own may hand out anything: their batches are read.
        if type(data) is not DataLoader or isinstance(data.dataset, IterableDataset):
            return data, [settings, type(data.dataset), _callables(data.dataset)]
        return data.dataset, settings
    return data, None


def _without(dataset: Any, value: Any) -> Any:
    """A sampler by its class and settings, its own samplers alike, without the data that it draws from."""
    if not isinstance(value, Sampler):
        return value
    return [type(value), {key: _without(dataset, part) for key, part in vars(value).items() if part is not dataset}]


def _callables(value: Any, depth: int = 4) -> dict[str, Any]:
    """What `value` does to samples: functions, lists of them, fractions, and the same of datasets inside.

    One pass need not show it: what is drawn rarely may not be drawn at all.
    """
    found = {}
    for key, part in getattr(value, "__dict__", {}).items():
        if callable(part) or type(part) is float:
            found[key] = part
        elif isinstance(part, list | tuple) and part and all(map(callable, part)):
            found[key] = list(part)
        elif isinstance(part, Dataset) and depth > 0:
            found[key] = [type(part), _callables(part, depth - 1)]
    return found


def _in_memory(samples: Any) -> bool:
    """Whether what `samples` hold is all that they will ever say."""
    if type(samples) is TensorDataset:
        return _in_memory(samples.tensors)
    if type(samples) is Subset:
        return _in_memory(samples.dataset)
    if type(samples) is ConcatDataset:
        return _in_memory(samples.datasets)
    if type(samples) is dict:
        return all(map(_in_memory, samples.values()))
    if type(samples) in (list, tuple):
        return all(map(_in_memory, samples))
    return type(samples) in _PLAIN


def _items(name: str, samples: Any, *, batches: bool) -> Iterator[Any]:
    try:
        yield from samples if batches else (samples[index] for index in range(len(samples)))
    except Exception as error:
        raise WorkloadError(
            f"{name} cannot be read from end to end: {type(error).__name__}: {error}; mend or leave out what is broken"
        ) from error
