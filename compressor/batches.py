"""Mini-batches of a map-style dataset that the same torch seed replays bit by bit."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
# A tensor, or tensors in tuples, lists and dicts: the loss is given all of it, the metric the one that is judged by.
Targets = Any
Batch = tuple[Inputs, Targets]
Augment = Callable[..., Any]

# The names under which datasets in Hugging Face style carry what is to be predicted.
TARGET_KEYS = ("labels", "label", "target", "targets")


class Batches:
    """Mini-batches over `samples[i] for i in indices`, freshly shuffled and augmented at every pass.

    `samples` is a pair (inputs, targets) of tensors or arrays with the same first dimension, or a map-style dataset of
    (inputs, target) pairs or of dicts with a `labels` entry; targets may be dicts or tuples of tensors.
    `transform(inputs)` maps a collated batch, so does `augment(inputs, generator)`, or, where it asks for three,
    `augment(inputs, targets, generator)`, which gives (inputs, targets). It draws its randomness from the generator
    only. A pass draws its seed from torch's global generator, as DataLoader does: `torch.manual_seed(s)` before two
    passes makes them the same to the bit.
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
        self._mixes_targets = augment is not None and _asks_for(augment) >= 3

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
            if self.augment is not None and self._mixes_targets:
                inputs, targets = _pair(self.augment(inputs, targets, generator))
            elif self.augment is not None:
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
            raise ValueError(
                f"inputs and targets must have the same number of samples, got {sorted(sizes)}; give one for each"
            )
        return pair
    if not (hasattr(samples, "__getitem__") and hasattr(samples, "__len__")):
        raise TypeError(
            f"a dataset needs len() and indexing, or must be a pair (inputs, targets); got {type(samples).__name__}. "
            "For a stream or a loader use Workload.from_loaders"
        )
    return samples


def sample_count(samples: Any) -> int:
    """How many samples there are."""
    return len(judged_target(samples[1])) if isinstance(samples, tuple) else len(samples)


def gather(samples: Any, indices: Tensor) -> Batch:
    """The batch of the given samples, collated."""
    if isinstance(samples, tuple):
        inputs, targets = samples
        return _map(inputs, lambda tensor: tensor[indices]), map_targets(targets, lambda tensor: tensor[indices])
    return split_batch(default_collate([samples[int(index)] for index in indices]))


def all_targets(samples: Any) -> Tensor:
    """The targets of every sample, without loading inputs where the dataset has them at hand."""
    if isinstance(samples, tuple):
        return torch.as_tensor(judged_target(samples[1]))
    if hasattr(samples, "targets"):
        return torch.as_tensor(samples.targets)
    return torch.stack(
        [torch.as_tensor(judged_target(split_batch(samples[index])[1])) for index in range(len(samples))]
    )


def split_batch(batch: Any) -> Batch:
    """(inputs, targets) of a batch given as a pair, as (input, input, ..., target), or as a dict with labels."""
    if isinstance(batch, Mapping):
        for key in TARGET_KEYS:
            if key in batch:
                return {name: value for name, value in batch.items() if name != key}, batch[key]
        raise ValueError(f"a dict batch needs one of {TARGET_KEYS}, got the keys {sorted(map(str, batch))}")
    if isinstance(batch, list | tuple) and len(batch) >= 2:
        *inputs, targets = batch
        first = inputs[0] if len(inputs) == 1 else tuple(inputs)
        return (tuple(first) if isinstance(first, list) else first), targets
    raise ValueError(f"a batch is (inputs, targets) or a dict with labels, got {type(batch).__name__}")


def map_targets(targets: Targets, function: Callable[[Any], Any]) -> Targets:
    """`targets` of the same form with `function` applied to every tensor, in tuples, lists and dicts at any depth."""
    if isinstance(targets, Mapping):
        return {name: map_targets(value, function) for name, value in targets.items()}
    if isinstance(targets, tuple | list):
        return tuple(map_targets(value, function) for value in targets)
    return function(targets)


def judged_target(targets: Targets) -> Any:
    """The target that metrics judge by: `targets` itself, of a dict what is called as one, else the first of several.

    Raises ValueError where there is none.
    """
    if isinstance(targets, Mapping):
        named = next((key for key in TARGET_KEYS if key in targets), next(iter(targets), None))
        targets = () if named is None else (targets[named],)
    if not isinstance(targets, tuple | list):
        return targets
    if not targets:
        raise ValueError("targets hold no tensor: give one for each sample")
    return judged_target(targets[0])


def with_judged(targets: Targets, judged: Tensor) -> Targets:
    """`targets` with `judged` in the place of what metrics judge by."""
    own = judged_target(targets)
    return map_targets(targets, lambda value: judged if value is own else value)


def target_tensors(targets: Targets) -> tuple[Any, ...]:
    """All tensors of `targets` in order."""
    found: list[Any] = []
    map_targets(targets, found.append)
    return tuple(found)


def target_rows(targets: Targets, which: slice, samples: int) -> Targets:
    """`targets` of some of `samples` samples; what does not hold one row for each of them stays as it is."""
    return map_targets(targets, lambda value: value[which] if value.ndim and len(value) == samples else value)


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
    if not isinstance(value, Mapping | tuple | list):
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else torch.as_tensor(value)
    return _map(value, _tensor)


def _leaves(pair: tuple[Any, Any]) -> list[Tensor]:
    inputs, targets = pair
    return [*target_tensors(inputs), *target_tensors(targets)]


def _asks_for(function: Callable[..., Any]) -> int:
    """How many arguments `function` has to be given."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built into C
        return 2
    positional = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return sum(one.kind in positional and one.default is inspect.Parameter.empty for one in parameters)


def _pair(found: Any) -> Batch:
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise ValueError(
            f"augment(inputs, targets, generator) must give the pair (inputs, targets), got {type(found).__name__}; "
            "one that changes inputs alone is augment(inputs, generator)"
        )
    return found[0], found[1]
