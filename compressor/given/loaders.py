"""Loaders of any kind as the sets of a workload: batches that can be read again and again, and a part held out."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

from compressor.batches import Batch, Batches, Inputs, split_batch, target_tensors
from compressor.checks import check_fraction
from compressor.errors import WorkloadError
from compressor.given.models import is_short
from compressor.given.notices import WorkloadWarning
from compressor.given.numbers import as_usual, holds_float64, is_usual, tell_of_float64
from compressor.given.table_rows import TableRows, is_table
from compressor.streams.passes import First, Made, Mapped, one_pass

# Taken over where a loader is made again on a part of its samples.
_SETTINGS = ("num_workers", "collate_fn", "pin_memory", "drop_last", "timeout", "worker_init_fn", "generator")


@dataclass(frozen=True, kw_only=True)
class Loaders:
    """The four sets of a workload, and the first batch of train."""

    train: Iterable[Any]
    calibration: Iterable[Any]
    validation: Iterable[Any]
    test: Iterable[Any]
    first: Batch


def sets_of(
    given: Mapping[str, Any],
    *,
    model: Any,
    batch_size: int,
    validation_fraction: float,
    calibration_samples: int,
    seed: int,
) -> Loaders:
    """The sets made of the loaders `given` by name; `validation` and `calibration` may be None.

    Then a part of train is held out, where it can be told apart: samples of a DataLoader's dataset, batches of a list;
    and calibration is the first batches of train. Numbers in half precision become float32 where `model` has some.
    Tables of Hugging Face `datasets` come in batches of `batch_size`. Raises WorkloadError for what is no loader,
    cannot be read again, or cannot be parted.
    """
    known = {name: _batches(name, data, batch_size) for name, data in given.items() if data is not None}
    if "validation" not in known:
        known["train"], known["validation"] = _held_out(known["train"], validation_fraction, seed)
    firsts, converted, halves = {}, [], is_short(model)
    for name, data in known.items():
        batch = _first_batch(name, data)
        if holds_float64(batch):
            converted.append(name)
        if not is_usual(batch, halves=halves):
            made = partial(as_usual, halves=True) if halves else as_usual
            known[name], batch = Mapped(data, made), made(batch)
        firsts[name] = _split(name, batch)
    if "calibration" not in known:
        count = max(1, math.ceil(calibration_samples / _samples(firsts["train"][0])))
        known["calibration"] = First(known["train"], count)
    tell_of_float64(converted)
    return Loaders(**known, first=firsts["train"])


def _batches(name: str, data: Any, batch_size: int) -> Iterable[Any]:
    """`data` as an iterable of batches. Raises WorkloadError for anything else."""
    if is_table(data):
        return Batches(TableRows(data, name), batch_size=batch_size, shuffle=name == "train")
    if hasattr(data, "column_names") and hasattr(data, "features"):
        raise WorkloadError(
            f"{name} must be an iterable of batches, and a {type(data).__name__} is a stream of rows; put it into a "
            f'loader: {name}=DataLoader({name}.with_format("torch"), batch_size=128)'
        )
    if isinstance(data, Iterator):
        raise WorkloadError(
            f"{name} is a {type(data).__name__}, an iterator, which can be read once, and every stage reads it from "
            f"the start; give the function that makes it, not what it gave: {name}=read instead of {name}=read()"
        )
    if isinstance(data, Mapping):
        parts = ", ".join(map(repr, data)) or "nothing"
        raise WorkloadError(
            f"{name} must be an iterable of batches, got a {type(data).__name__} of {parts}; give one of them"
        )
    if isinstance(data, Tensor | np.ndarray) or _is_pair(data):
        raise WorkloadError(
            f"{name} must be an iterable of batches, and {_described(data)} is all samples at once; use "
            "Workload.from_datasets, which takes pairs (inputs, targets) of tensors or arrays"
        )
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise WorkloadError(
            f"{name} must be an iterable of batches, and a {type(data).__name__} is a dataset of samples; put it into "
            f"a loader, {name}=DataLoader({name}, batch_size=128), or use Workload.from_datasets"
        )
    if not isinstance(data, Iterable):
        if isinstance(data, type) or not callable(data):
            raise WorkloadError(
                f"{name} must be an iterable of batches (inputs, targets), or a function that makes one anew, got "
                f"{_described(data)}; use a DataLoader"
            )
        return Made(data)
    if isinstance(data, str | bytes):
        raise WorkloadError(f"{name} must be an iterable of batches, got the text {data!r}; read the file first")
    return data


def _is_pair(data: Any) -> bool:
    return (
        isinstance(data, tuple)
        and len(data) == 2
        and all(isinstance(part, Tensor | np.ndarray) for part in data)
        and len(data[0].shape) > 0
        and data[0].shape[:1] == data[1].shape[:1]
    )


def _described(data: Any) -> str:
    if isinstance(data, tuple):
        return f"a pair of {type(data[0]).__name__}s"
    return f"the class {data.__name__}" if isinstance(data, type) else f"a {type(data).__name__}"


def _first_batch(name: str, data: Iterable[Any]) -> Any:
    """The first batch as it comes. Random generators and the loader are as before. Raises WorkloadError without any."""
    state = torch.get_rng_state()
    try:
        with closing(one_pass(data)) as passing:
            found = list(islice(passing, 1))
    except WorkloadError:
        raise
    except Exception as error:
        raise WorkloadError(
            f"{name} cannot be read: {type(error).__name__}: {error}; look at what the dataset, its transforms or "
            "collate_fn give"
        ) from error
    finally:
        torch.set_rng_state(state)
    if not found:
        again = ", and let the function make a new iterator at every call" if isinstance(data, Made) else ""
        raise WorkloadError(
            f"{name} must have batches, got none; give it samples, and check drop_last where it has fewer samples than "
            f"one batch{again}"
        )
    return found[0]


def _split(name: str, batch: Any) -> Batch:
    if _are_samples(batch):
        raise WorkloadError(
            f"a batch of {name} must be (inputs, targets), or a dict with labels, of tensors or arrays with the "
            f"samples first; got a list of {len(batch)} samples, each a {type(batch[0]).__name__}; put them together: "
            "torch.utils.data.default_collate(batch), as a DataLoader does without a collate_fn"
        )
    try:
        inputs, targets = split_batch(batch)
        samples = _samples(inputs)
    except (ValueError, AttributeError, IndexError, TypeError) as error:
        raise WorkloadError(
            f"a batch of {name} must be (inputs, targets), or a dict with labels, of tensors or arrays with the "
            f"samples first; got {type(batch).__name__}: {error}; bring it to that form in collate_fn"
        ) from error
    strange = [type(leaf).__name__ for leaf in target_tensors((inputs, targets)) if not isinstance(leaf, Tensor)]
    if strange:
        raise WorkloadError(
            f"a batch of {name} must be (inputs, targets) of tensors or arrays, and holds {strange[0]}; convert it in "
            "the dataset or in collate_fn"
        )
    loose = [leaf.layout for leaf in target_tensors((inputs, targets)) if leaf.layout != torch.strided]
    if loose:
        raise WorkloadError(f"a batch of {name} must be of dense tensors, got {loose[0]}; convert them with to_dense()")
    if not samples:
        raise WorkloadError(f"the first batch of {name} must hold samples, got none; leave empty batches out")
    return inputs, targets


def _are_samples(batch: Any) -> bool:
    """Whether `batch` is a list of samples that nobody has put together: dicts, or pairs with one label each."""
    if not isinstance(batch, list) or not batch:
        return False
    if all(isinstance(each, Mapping) for each in batch):
        return True
    pairs = [each for each in batch if isinstance(each, tuple | list) and len(each) == 2]
    return len(pairs) == len(batch) and all(np.ndim(label) == 0 for _, label in pairs)


def _samples(inputs: Inputs) -> int:
    return len(target_tensors(inputs)[0])


def _held_out(train: Iterable[Any], fraction: float, seed: int) -> tuple[Iterable[Any], Iterable[Any]]:
    """(what is left of train, what is held out for decisions). Raises WorkloadError where that cannot be told apart."""
    check_fraction(fraction, "validation_fraction is the fraction of train held out", within="(0, 1)")
    if isinstance(train, Batches) or _is_plain(train):
        samples = train.samples if isinstance(train, Batches) else train.dataset  # type: ignore[attr-defined] # a DataLoader
        rest, chosen = _parted(len(samples), fraction, seed, "train", "samples")
        _tell(f"{len(chosen)} of the {len(samples)} samples of train are", augmented=True)
        if isinstance(train, Batches):
            return (
                Batches(samples, indices=rest, batch_size=train.batch_size, shuffle=True, drop_last=True),
                Batches(samples, indices=chosen, batch_size=train.batch_size),
            )
        return _on(train, rest, whole=False), _on(train, chosen, whole=True)
    if isinstance(train, Sequence):
        rest, chosen = _parted(len(train), fraction, seed, "train", "batches")
        _tell(f"{len(chosen)} of the {len(train)} batches of train are", augmented=False)
        return [train[index] for index in rest], [train[index] for index in chosen]
    raise WorkloadError(
        f"validation is missing, and no part of train, a {type(train).__name__}, can be held out for it: which samples "
        "come in which batch is not known. Give validation=loader, of samples that the model was not trained on"
    )


def _parted(count: int, fraction: float, seed: int, name: str, what: str) -> tuple[list[int], list[int]]:
    size = max(1, round(count * fraction))
    if size >= count:
        raise WorkloadError(f"{name} has {count} {what}, and none of them can be held out; give validation=loader")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[size:]), sorted(order[:size])


def _tell(what: str, *, augmented: bool) -> None:
    read = ", read as train is, with its augmentations" if augmented else ""
    warnings.warn(
        f"validation is missing: {what} held out for decisions{read}. A model that was trained on them scores too well "
        "there; give validation=loader, of samples that it has not seen",
        WorkloadWarning,
        stacklevel=6,
    )


def _is_plain(train: Any) -> bool:
    """A DataLoader whose samples are counted and drawn in one of torch's usual ways: it can be made again on a part."""
    if type(train) is not DataLoader or isinstance(train.dataset, IterableDataset):
        return False
    if type(train.batch_sampler) is not BatchSampler or train.batch_size is None:
        return False
    usual = type(train.sampler) is SequentialSampler or (
        type(train.sampler) is RandomSampler and not train.sampler.replacement
    )
    return usual and len(train.sampler) == len(train.dataset)  # type: ignore[arg-type] # a map-style dataset has a length


def _on(loader: Any, indices: list[int], *, whole: bool) -> Iterable[Any]:
    """`loader` on some of its samples; the `whole` of them in their order."""
    settings = {name: getattr(loader, name) for name in _SETTINGS}
    if whole:
        settings["drop_last"] = False
    return DataLoader(
        Subset(loader.dataset, indices),
        batch_size=loader.batch_size,
        shuffle=not whole and type(loader.sampler) is RandomSampler,
        **settings,
    )
