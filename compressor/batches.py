"""Mini-batches of a map-style dataset that the same torch seed replays bit by bit."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
Batch = tuple[Inputs, Tensor]
Augment = Callable[[Any, torch.Generator], Any]

# The names under which datasets in Hugging Face style carry what is to be predicted.
_TARGET_KEYS = ("labels", "label", "target", "targets")


class Batches:
    """Mini-batches over `samples[i] for i in indices`, freshly shuffled and augmented at every pass.

    `samples` is a pair (inputs, targets) of tensors or arrays with the same first dimension, or a map-style dataset of
    (inputs, target) pairs or of dicts with a `labels` entry. `transform(inputs)` maps a collated batch, so does
    `augment(inputs, generator)`, which draws its randomness from the generator only. A pass draws its seed from torch's
    global generator, as DataLoader does: `torch.manual_seed(s)` before two passes makes them the same to the bit.
    """

    def __init__(
        self,
        samples: Any,
        *,
        indices: Sequence[int] | None = None,
        batch_size: int = 128,
        shuffle: bool = False,
        transform: Callable[[Any], Any] | None = None,
        augment: Augment | None = None,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.samples = as_tensors(samples)
        total = sample_count(self.samples)
        self.indices = torch.arange(total) if indices is None else torch.as_tensor(list(indices), dtype=torch.long)
        self.batch_size, self.shuffle = batch_size, shuffle
        self.transform, self.augment, self.drop_last = transform, augment, drop_last

    def __len__(self) -> int:
        """The number of batches of one pass."""
        full, rest = divmod(len(self.indices), self.batch_size)
        return full + (rest > 0 and not (self.drop_last and full > 0))

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator()
        if self.shuffle or self.augment is not None:
            generator.manual_seed(int(torch.randint(2**62, ())))
        order = self.indices
        if self.shuffle:
            order = order[torch.randperm(len(order), generator=generator)]
        for number in range(len(self)):
            inputs, targets = gather(self.samples, order[number * self.batch_size : (number + 1) * self.batch_size])
            if self.augment is not None:
                inputs = self.augment(inputs, generator)
            if self.transform is not None:
                inputs = self.transform(inputs)
            yield inputs, targets


def as_tensors(samples: Any) -> Any:
    """`samples` with arrays turned into tensors; a TensorDataset becomes its pair, other datasets stay as they are."""
    if isinstance(samples, torch.utils.data.TensorDataset):
        *inputs, targets = samples.tensors
        return (inputs[0] if len(inputs) == 1 else tuple(inputs), targets)
    if isinstance(samples, tuple) and len(samples) == 2:
        inputs, targets = samples
        pair = _tensor(inputs), _tensor(targets)
        sizes = {len(leaf) for leaf in _leaves(pair)}
        if len(sizes) != 1:
            raise ValueError(f"inputs and targets must have the same number of samples, got {sorted(sizes)}")
        return pair
    if not (hasattr(samples, "__getitem__") and hasattr(samples, "__len__")):
        raise TypeError(
            f"a dataset needs len() and indexing, or must be a pair (inputs, targets); got {type(samples).__name__}. "
            "For a stream or a loader build Workload(train=..., test=..., ...) by hand"
        )
    return samples


def sample_count(samples: Any) -> int:
    """How many samples there are."""
    return len(samples[1]) if isinstance(samples, tuple) else len(samples)


def gather(samples: Any, indices: Tensor) -> Batch:
    """The batch of the given samples, collated."""
    if isinstance(samples, tuple):
        inputs, targets = samples
        return _map(inputs, lambda tensor: tensor[indices]), targets[indices]
    return split_batch(default_collate([samples[int(index)] for index in indices]))


def all_targets(samples: Any) -> Tensor:
    """The targets of every sample, without loading inputs where the dataset has them at hand."""
    if isinstance(samples, tuple):
        return torch.as_tensor(samples[1])
    if hasattr(samples, "targets"):
        return torch.as_tensor(samples.targets)
    return torch.stack([torch.as_tensor(split_batch(samples[index])[1]) for index in range(len(samples))])


def split_batch(batch: Any) -> Batch:
    """(inputs, targets) of a batch given as a pair, as (input, input, ..., target), or as a dict with labels."""
    if isinstance(batch, Mapping):
        for key in _TARGET_KEYS:
            if key in batch:
                return {name: value for name, value in batch.items() if name != key}, batch[key]
        raise ValueError(f"a dict batch needs one of {_TARGET_KEYS}, got the keys {sorted(map(str, batch))}")
    if isinstance(batch, list | tuple) and len(batch) >= 2:
        *inputs, targets = batch
        first = inputs[0] if len(inputs) == 1 else tuple(inputs)
        return (tuple(first) if isinstance(first, list) else first), targets
    raise ValueError(f"a batch is (inputs, targets) or a dict with labels, got {type(batch).__name__}")


def map_tensors(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """`inputs` of the same form with `function` applied to every tensor."""
    mapped: Inputs = _map(inputs, function)
    return mapped


def _map(inputs: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(inputs, Mapping):
        return {name: function(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(function(value) for value in inputs)
    return function(inputs)


def _tensor(value: Any) -> Any:
    return _map(value, lambda leaf: torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else torch.as_tensor(leaf))


def _leaves(pair: tuple[Any, Any]) -> list[Tensor]:
    inputs, targets = pair
    if isinstance(inputs, Mapping):
        return [*inputs.values(), targets]
    return [*inputs, targets] if isinstance(inputs, tuple) else [inputs, targets]
