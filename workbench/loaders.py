"""Loaders with a state of their own, as people write them, over the same 96 samples."""

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler, TensorDataset, default_collate
from torch.utils.data.distributed import DistributedSampler

INPUTS = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
TARGETS = (INPUTS[:, 0] > 0).long()
PAIRS = TensorDataset(INPUTS, TARGETS)

_OF_THE_MODULE = np.random.default_rng(5)


class Noisy(Dataset[Any]):
    """Samples with noise from `draw`, kept as an attribute."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(INPUTS)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return INPUTS[index] + 0.1 * torch.tensor(self.noise(), dtype=torch.float32), TARGETS[index]

    def noise(self) -> Any:
        """Six numbers."""
        if isinstance(self.source, random.Random):
            return [self.source.random() for _ in range(6)]
        if isinstance(self.source, torch.Generator):
            return torch.rand(6, generator=self.source).tolist()
        return self.source.normal(size=6)


class NoisyByModule(Noisy):
    """Noise from a generator that is a global of the module."""

    def noise(self) -> Any:
        return _OF_THE_MODULE.normal(size=6)


class Fading(Noisy):
    """What is added fades with the number of samples that were ever read: a counter."""

    def __init__(self) -> None:
        super().__init__(np.random)
        self.read = 0

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.read += 1
        return INPUTS[index] + 1 / self.read, TARGETS[index]


class Sharded(IterableDataset[Any]):
    """A stream that goes through its samples in another order at every pass, by a number that it counts."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[Any]:
        order = list(range(len(INPUTS)))
        random.Random(self.passes).shuffle(order)  # noqa: S311 - an order, no secret
        self.passes += 1
        return ((INPUTS[index], TARGETS[index]) for index in order)


class Weighted(Sampler[int]):
    """A sampler with a generator and a number of the epoch, which `set_epoch` changes."""

    def __init__(self) -> None:
        self.epoch, self.rng = 0, random.Random(3)  # noqa: S311 - an order, no secret

    def set_epoch(self, epoch: int) -> None:
        """As DistributedSampler has it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(INPUTS)

    def __iter__(self) -> Iterator[int]:
        return iter(self.rng.choices(range(self.epoch, len(INPUTS)), k=len(INPUTS)))


class Collate:
    """Mixes every batch with itself turned round, by a weight from a generator of its own."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(1)

    def __call__(self, samples: Any) -> Any:
        inputs, targets = default_collate(samples)
        part = float(torch.rand((), generator=self.generator))
        return part * inputs + (1 - part) * inputs.flip(0), targets


class ByFunction:
    """A loader of somebody's own around a function with a generator in its closure."""

    def __init__(self) -> None:
        rng = np.random.default_rng()

        def read() -> Iterator[Any]:
            for start in rng.permutation(6):
                yield INPUTS[start * 16 :][:16], TARGETS[start * 16 :][:16]

        self.read = read

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[Any]:
        return self.read()


class Hidden(Noisy):
    """What is added goes on in an iterator: nothing seeds it, and nothing can put it back."""

    def __init__(self) -> None:
        super().__init__(None)
        self.steps = itertools.count(1)

    def noise(self) -> Any:
        return [next(self.steps) / 100] * 6


def _loader(data: Any = PAIRS, **options: Any) -> DataLoader[Any]:
    return DataLoader(data, batch_size=16, **({"shuffle": True} | options))


REPLAYED: dict[str, Callable[[], Any]] = {
    "plain": _loader,
    "a generator of the loader": lambda: _loader(generator=torch.Generator().manual_seed(4)),
    "a NumPy generator of the dataset": lambda: _loader(Noisy(np.random.default_rng())),
    "a RandomState of the dataset": lambda: _loader(Noisy(np.random.RandomState(2))),
    "a Python generator of the dataset": lambda: _loader(Noisy(random.Random(2))),  # noqa: S311 - no secret
    "a torch generator of the dataset": lambda: _loader(Noisy(torch.Generator())),
    "the global generator of NumPy": lambda: _loader(Noisy(np.random)),
    "a generator of the module": lambda: _loader(NoisyByModule(None)),
    "a counter of the dataset": lambda: _loader(Fading()),
    "a stream that counts its passes": lambda: _loader(Sharded(), shuffle=None),
    "a sampler that is told the epoch": lambda: _loader(sampler=Weighted(), shuffle=None),
    "a distributed sampler": lambda: _loader(
        sampler=DistributedSampler(PAIRS, num_replicas=2, rank=0, seed=3), shuffle=None
    ),
    "a batch sampler": lambda: DataLoader(PAIRS, batch_sampler=BatchSampler(Weighted(), 16, drop_last=False)),
    "a collate function with a generator": lambda: _loader(collate_fn=Collate()),
    "a function with a generator in its closure": ByFunction,
}
WITH_WORKERS: dict[str, Callable[[], Any]] = {
    "workers with a generator of the dataset": lambda: _loader(Noisy(np.random.default_rng(1)), num_workers=2),
    "workers that persist": lambda: _loader(Noisy(np.random), num_workers=2, persistent_workers=True),
}
NOT_REPLAYED: dict[str, Callable[[], Any]] = {"an iterator that goes on": lambda: _loader(Hidden())}
