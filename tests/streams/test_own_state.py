"""What loaders keep between their passes is found wherever it hangs, seeded for a pass, and put back after it."""

import functools
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from compressor.batches import Batches
from compressor.streams.own_state import OwnState
from compressor.streams.passes import Made, Mapped, one_pass
from compressor.workload import batches_of, first_batches
from workbench.loaders import INPUTS, NOT_REPLAYED, PAIRS, REPLAYED, WITH_WORKERS, Noisy


def read(data: Any, count: int | None = None) -> list[Tensor]:
    """The inputs of a pass, or of the first `count` batches, under one seed of torch, NumPy and Python."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - loaders draw from the global one
    random.seed(0)
    return [inputs for inputs, _ in (batches_of(data) if count is None else first_batches(data, count))]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("kind", [*REPLAYED, *WITH_WORKERS])
def test_every_reader_meets_the_same_batches(kind: str) -> None:
    """A pass, another one, one that was given up in between, and one by another loader of the kind: the same bits."""
    make = (REPLAYED | WITH_WORKERS)[kind]
    loader = make()
    whole = read(loader)
    assert same(read(loader, 2), whole[:2])
    assert same(read(loader), whole)
    assert same(read(make()), whole)


def test_what_hangs_in_an_iterator_is_not_replayed() -> None:
    """Nothing can put it back: that is found by reading twice, elsewhere."""
    loader = NOT_REPLAYED["an iterator that goes on"]()
    assert not same(read(loader), read(loader))


class Slotted:
    __slots__ = ("__weakref__", "rng", "unset")

    def __init__(self, rng: Any) -> None:
        self.rng = rng

    def __iter__(self) -> Any:
        yield INPUTS + self.rng.random(), None


class Anything:
    """Answers to any name, as proxies do."""

    def __init__(self, rng: Any) -> None:
        self.rng = rng

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_: None


PLACES = {
    "a slot": Slotted,
    "what answers to any name": Anything,
    "beside thousands of objects": lambda rng: [[[[Anything(None)] for _ in range(150)] for _ in range(150)], [rng]],
    "an attribute": lambda rng: DataLoader(Noisy(rng), batch_size=16),
    "a dict in an attribute": lambda rng: DataLoader(Noisy({"inner": [rng]}), batch_size=16),
    "a partial": lambda rng: Batches(PAIRS.tensors, augment=functools.partial(added, rng)),
    "a default": lambda rng: Batches(PAIRS.tensors, transform=with_default(rng)),
    "a closure": lambda rng: Batches(PAIRS.tensors, transform=closing_over(rng)),
    "a bound method": lambda rng: Made(Adding(rng).batches),
    "a loader around a loader": lambda rng: Mapped(Mapped(PAIRS, closing_over(rng)), tuple),
}


def added(rng: Any, inputs: Tensor, _generator: Any = None) -> Tensor:
    return inputs + rng.random()


def with_default(generator: Any) -> Any:
    def add(inputs: Tensor, rng: Any = generator) -> Tensor:
        return added(rng, inputs)

    return add


def closing_over(rng: Any) -> Any:
    return lambda inputs: added(rng, inputs)


class Adding:
    def __init__(self, rng: Any) -> None:
        self.rng = rng

    def batches(self) -> Any:
        yield INPUTS + self.rng.random(), None


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("make", [np.random.default_rng, random.Random, np.random.RandomState, torch.Generator])
def test_generators_are_found_wherever_they_hang(place: str, make: Any) -> None:
    """In attributes, containers, partials, defaults, closures and bound methods: the generator itself, once."""
    rng = make()
    found = OwnState.of(PLACES[place](rng)).generators
    assert [id(generator) for generator in found.values()] == [id(rng)]


@pytest.mark.parametrize("kind", ["Philox", "MT19937", "SFC64", "PCG64DXSM"])
def test_a_pass_puts_every_bit_generator_back(kind: str) -> None:
    """Whichever bit generator of NumPy it is: a pass draws by torch's seed, and its state is the one before then."""
    rng = np.random.Generator(getattr(np.random, kind)(1))
    loader = DataLoader(Noisy(rng), batch_size=16)
    untouched = rng.bit_generator.state
    first, second = read(loader), read(loader)
    assert same(first, second)
    assert repr(rng.bit_generator.state) == repr(untouched)
    torch.manual_seed(1)
    assert not torch.equal(next(batches_of(loader))[0], first[0])


def test_the_global_generators_are_everybodys() -> None:
    """Torch's and Python's are no loader's own, where a loader is handed them."""
    assert not OwnState.of(DataLoader(PAIRS, generator=torch.default_generator)).generators
    assert not OwnState.of(Noisy(random._inst)).generators


def test_loaders_without_a_state_draw_nothing_for_it() -> None:
    """The numbers of a plain pass are what they always were: nothing is drawn from torch's generator beforehand."""
    data = Batches(PAIRS.tensors, batch_size=16, shuffle=True)
    torch.manual_seed(0)
    wanted = [inputs for inputs, _ in data]
    torch.manual_seed(0)
    assert same([inputs for inputs, _ in batches_of(data)], wanted)


def test_workers_that_wait_are_left_alone() -> None:
    """A loader whose workers persist is afterwards as before, its workers alive and their iterator its own."""
    loader = DataLoader(PAIRS, batch_size=16, num_workers=1, persistent_workers=True)
    list(loader)
    waiting = loader._iterator
    assert len(read(loader)) == 6
    assert loader._iterator is waiting
    assert loader.persistent_workers
    assert len(list(loader)) == 6


class Deep:
    """Twenty thousand samples in a list, and a chain of objects without an end."""

    def __init__(self) -> None:
        self.samples = [(float(number), 0) for number in range(20_000)]
        self.next = self

    def __iter__(self) -> Any:
        return iter(self.samples)


def test_a_walk_through_data_ends() -> None:
    """Samples in memory are not walked through one by one, and circles are walked once."""
    found = OwnState.of(Deep())
    assert not found.generators
    assert len(found.counting) == 1


def test_mapped_and_made_are_loaders_again_and_again() -> None:
    """Each pass starts anew; what is mapped is as long as what it is of, what is made says nothing of its length."""
    mapped = Mapped(DataLoader(TensorDataset(INPUTS, INPUTS), batch_size=32), lambda batch: batch[0].sum())
    assert len(mapped) == 3
    assert [float(value) for value in mapped] == [float(value) for value in mapped]
    made = Made(lambda: (number for number in range(3)))
    assert list(made) == list(made) == [0, 1, 2]
    with pytest.raises(TypeError):
        len(made)  # type: ignore[arg-type]
    assert list(one_pass(made)) == [0, 1, 2]
