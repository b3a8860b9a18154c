"""Everything that a run is given is told apart by name, whichever of it was changed."""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from compressor import Effect, Metric, Workload
from compressor.batches import Batches
from compressor.errors import WorkloadError
from compressor.identity.workload import Identity, identify
from compressor.stages import Distill, FineTune, PruneChannels, Quantize

INPUTS = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
TARGETS = (INPUTS[:, 0] > 0).long()


class Net(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.scale = nn.Linear(4, 2), scale

    def forward(self, inputs):
        return self.layer(inputs) * self.scale


def batches(inputs=INPUTS, targets=TARGETS, size: int = 16) -> list[Any]:
    return [(inputs[start : start + size], targets[start : start + size]) for start in range(0, len(inputs), size)]


def workload(**changes: Any) -> Workload:
    given: dict[str, Any] = {
        "name": "small",
        "model": Net(),
        "example_inputs": INPUTS[:2],
        "train": Batches((INPUTS, TARGETS), batch_size=16, shuffle=True),
        "calibration": batches(),
        "validation": batches(),
        "test": batches(),
        "loss": nn.CrossEntropyLoss(),
        "metric": Metric.accuracy(),
    }
    return Workload(**given | changes)


def found(stages: tuple[Any, ...] = (), **changes: Any) -> Identity:
    return identify(workload(**changes), stages or (FineTune(epochs=1),))


def wrong_at_the_end(targets=TARGETS):
    changed = targets.clone()
    changed[-1] = 1 - changed[-1]
    return changed


def frozen(model: nn.Module) -> nn.Module:
    model.layer.bias.requires_grad_(False)
    return model


class OtherNet(Net):
    def forward(self, inputs):
        return self.layer(inputs) + self.scale


CHANGES: dict[str, tuple[str, Callable[[], Any]]] = {
    "weights": ("model", lambda: nn.Sequential(nn.Linear(4, 2))),
    "a class that computes something else": ("model", OtherNet),
    "a setting of the model": ("model", lambda: Net(scale=2.0)),
    "what is frozen": ("model", lambda: frozen(Net())),
    "mode": ("model", lambda: Net().eval()),
    "example": ("example_inputs", lambda: INPUTS[2:4]),
    "longer example": ("example_inputs", lambda: INPUTS[:3]),
    "last label": ("train", lambda: Batches((INPUTS, wrong_at_the_end()), batch_size=16, shuffle=True)),
    "last sample": ("train", lambda: Batches((INPUTS * 2, TARGETS), batch_size=16, shuffle=True)),
    "order": ("train", lambda: Batches((INPUTS, TARGETS), batch_size=16)),
    "batch size": ("train", lambda: Batches((INPUTS, TARGETS), batch_size=8, shuffle=True)),
    "which samples": ("train", lambda: Batches((INPUTS, TARGETS), indices=range(60), batch_size=16, shuffle=True)),
    "transform": (
        "train",
        lambda: Batches((INPUTS, TARGETS), batch_size=16, shuffle=True, transform=lambda inputs: inputs * 2),
    ),
    "augmentation": (
        "train",
        lambda: Batches((INPUTS, TARGETS), batch_size=16, shuffle=True, augment=lambda inputs, _: -inputs),
    ),
    "calibration": ("calibration", lambda: batches(targets=wrong_at_the_end())),
    "validation": ("validation", lambda: batches(targets=wrong_at_the_end())),
    "test from the last batch on": ("test", lambda: batches(targets=wrong_at_the_end())),
    "another loss": ("loss", lambda: F.cross_entropy),
    "its negative": ("loss", lambda: lambda outputs, targets: -F.cross_entropy(outputs, targets)),
    "its weights": ("loss", lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 50.0]))),
    "another metric": ("metric", lambda: dataclasses.replace(Metric.accuracy(), per_sample=lambda o, t: o[:, 0] - t)),
    "a mean of another kind": ("metric", lambda: dataclasses.replace(Metric.accuracy(), aggregate=torch.median)),
    "the other direction": ("metric", lambda: dataclasses.replace(Metric.accuracy(), higher_is_better=False)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_input_is_named_and_makes_another_key(change: str) -> None:
    """What was changed has another digest, all else the same; the key of every stage is another one."""
    name, make = CHANGES[change]
    before, after = found(), found(**{name: make()})
    assert [key for key in before.told if before.told[key] != after.told[key]] == [name]
    assert before.stages != after.stages
    # The reference is measured on test data by the metric; training data and loss play no part.
    assert (before.reference == after.reference) == (name in ("train", "calibration", "validation", "loss"))


def test_nothing_changed_is_the_same() -> None:
    """Everything made anew, and a run in between, leave every digest as it is."""
    given = workload()
    before = identify(given, [FineTune(epochs=1)])
    given.model.eval()(INPUTS)
    given.model.train()
    for _ in given.train:
        pass
    again = identify(given, [FineTune(epochs=1)])
    assert before == again == found()
    assert before.warnings == ()


@dataclass(frozen=True, kw_only=True)
class Own:
    """A stage of the user's, with an object that its repr does not show."""

    effect: ClassVar[Effect] = Effect.VALUES
    hidden: Any = field(default=None, repr=False)

    def apply(self, model, workload, context):
        return model


@dataclass(frozen=True, kw_only=True)
class OtherOwn:
    effect: ClassVar[Effect] = Effect.VALUES
    hidden: Any = field(default=None, repr=False)

    def apply(self, model, workload, context):
        return model.half()


OtherOwn.__name__ = OtherOwn.__qualname__ = "Own"


@dataclass(frozen=True)
class OwnCriterion:
    power: int = 1

    def scores(self, *given):
        return given


@pytest.mark.parametrize(
    ("one", "two", "where"),
    [
        (Distill(teacher=Net()), Distill(teacher=Net(2.0)), ("distill", "teacher")),
        (Own(hidden=[1]), Own(hidden=[2]), ("own", "hidden")),
        (Own(), OtherOwn(), ("own", "code")),
        (
            Own(hidden=OwnCriterion()),
            Own(hidden=OwnCriterion(2)),
            ("own", "hidden"),
        ),
    ],
)
def test_what_the_parameters_of_a_stage_do_not_show_counts(one, two, where) -> None:
    """A teacher, an object, the code of the stage: each is told by its name."""
    before, after = found((one,)), found((two,))
    stage, name = where
    assert before.stages != after.stages
    (told,), (other,) = before.told["stage_inputs"], after.told["stage_inputs"]
    assert [key for key in told[stage] if told[stage][key] != other[stage][key]] == [name]


def test_plain_parameters_are_told_by_the_recipe_alone() -> None:
    """Of the package's own stages and value objects, run.json shows the values themselves."""
    told = found((PruneChannels(remove=0.3), Quantize(), Distill(features=("layer",)))).told["stage_inputs"]
    assert [list(next(iter(entry.values()))) for entry in told[:2]] == [["code"], ["code"]]
    foreign = ["data", "loss", "new_data", "replacement", "student", "teacher", "teacher_inputs"]
    assert sorted(told[2]["distill"]) == sorted(["code", "functions", *foreign])


class Images(Dataset):
    """A dataset that reads each sample when it is asked for, and changes it at random."""

    def __init__(self, inputs=INPUTS, strength: float = 0.0) -> None:
        self.inputs, self.strength = inputs, strength
        self.opened: list[int] = []  # a number would be put back after every pass

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int):
        self.opened.append(index)
        sample = self.inputs[index]
        return sample + self.strength * torch.randn(4) + np.random.rand() * 0, int(TARGETS[index])  # noqa: NPY002


class Stream(IterableDataset):
    """Samples one after the other, without a length."""

    def __init__(self, inputs=INPUTS) -> None:
        self.inputs, self.passes = inputs, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        yield from zip(self.inputs, TARGETS, strict=True)


class OwnLoader:
    """Batches from a class of the user's own."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor, self.passes = factor, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return ((inputs * self.factor, targets) for inputs, targets in batches())


class Scaled(TensorDataset):
    """A dataset of torch's with one thing done otherwise."""

    factor = 3.0

    def __getitem__(self, index):
        inputs, target = super().__getitem__(index)
        return inputs * self.factor, target


class ScaledMore(Scaled):
    factor = 4.0


class FactorLoader(DataLoader):
    """A loader of torch's that changes its batches."""

    def __init__(self, *given: Any, factor: float, **options: Any) -> None:
        super().__init__(*given, **options)
        self.own_factor = [factor]

    def __iter__(self) -> Iterator[Any]:
        return ((inputs * self.own_factor[0], targets) for inputs, targets in super().__iter__())


class OwnBatches(Batches):
    own_factor = 2.0

    def __iter__(self) -> Iterator[Any]:
        return ((inputs * self.own_factor, targets) for inputs, targets in super().__iter__())


def own_batches(factor: float) -> Batches:
    made = OwnBatches((INPUTS, TARGETS), batch_size=8)
    made.own_factor = factor
    return made


def late(inputs=INPUTS):
    changed = inputs.clone()
    changed[-1, -1] += 1e-6
    return changed


LOADERS: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=8, shuffle=True),
    "in order": lambda: DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=8),
    "batches of another size": lambda: DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=16, shuffle=True),
    "last one dropped": lambda: DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=8, shuffle=True, drop_last=True),
    "late change": lambda: DataLoader(TensorDataset(late(), TARGETS), batch_size=8, shuffle=True),
    "generator": lambda: DataLoader(
        TensorDataset(INPUTS, TARGETS), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "collated otherwise": lambda: DataLoader(
        TensorDataset(INPUTS, TARGETS), batch_size=8, shuffle=True, collate_fn=lambda batch: batch[::-1]
    ),
    "part": lambda: DataLoader(Subset(TensorDataset(INPUTS, TARGETS), range(100)), batch_size=8, shuffle=True),
    "read one by one": lambda: DataLoader(Images(), batch_size=8, shuffle=True),
    "read one by one, late change": lambda: DataLoader(Images(late()), batch_size=8, shuffle=True),
    "read and changed": lambda: DataLoader(Images(strength=0.1), batch_size=8, shuffle=True),
    "read and changed more": lambda: DataLoader(Images(strength=0.2), batch_size=8, shuffle=True),
    "dataset in our batches": lambda: Batches(Images(), batch_size=8),
    "dataset in our batches, late change": lambda: Batches(Images(late()), batch_size=8),
    "stream": lambda: DataLoader(Stream(), batch_size=8),
    "stream, late change": lambda: DataLoader(Stream(late()), batch_size=8),
    "own loader": OwnLoader,
    "dataset of torch's changed": lambda: DataLoader(Scaled(INPUTS, TARGETS), batch_size=8),
    "dataset of torch's changed more": lambda: DataLoader(ScaledMore(INPUTS, TARGETS), batch_size=8),
    "loader of torch's changed": lambda: FactorLoader(TensorDataset(INPUTS, TARGETS), shuffle=True, factor=2.0),
    "loader of torch's changed more": lambda: FactorLoader(TensorDataset(INPUTS, TARGETS), shuffle=True, factor=3.0),
    "batches of ours changed": lambda: own_batches(2.0),
    "batches of ours changed more": lambda: own_batches(3.0),
    "own loader, other factor": lambda: OwnLoader(2.0),
    "list": batches,
    "list of dicts": lambda: [{"x": inputs, "labels": targets} for inputs, targets in batches()],
    "arrays": lambda: [(inputs.numpy(), targets.numpy()) for inputs, targets in batches()],
}


def test_sets_of_every_kind_are_known_by_all_that_they_hold() -> None:
    """Loaders, datasets, streams, lists: known again when made again, told apart by the last sample, never unknown."""
    digests = {name: found(train=make()) for name, make in LOADERS.items()}
    assert [name for name, identity in digests.items() if identity.warnings] == []
    assert len({identity.told["train"] for identity in digests.values()}) == len(LOADERS)
    assert {name: found(train=make()) for name, make in LOADERS.items()} == digests


class Rarely:
    """Turns a sample round so seldom that a pass may well turn none."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, sample):
        return -sample if torch.rand(()) < self.probability else sample


class Turned(Dataset):
    """A dataset around another."""

    def __init__(self, samples, **settings) -> None:
        self.samples = samples
        vars(self).update(settings)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int):
        return self.samples[index]


@pytest.mark.parametrize(
    "make",
    [
        lambda rate: Turned(Images(), probability=rate),
        lambda rate: Turned(Images(), transform=Rarely(rate)),
        lambda rate: Turned(Images(), transforms=[Rarely(rate), torch.abs]),
        lambda rate: Turned(Turned(Images(), transform=Rarely(rate))),
        lambda rate: Subset(Turned(Images(), transform=Rarely(rate)), range(8)),
    ],
)
def test_what_a_pass_need_not_show_counts(make) -> None:
    """No sample is drawn in the one pass that is read, wherever in the dataset the drawing sits."""
    one, same, other = (found(train=DataLoader(make(rate))).told["train"] for rate in (1e-9, 1e-9, 2e-9))
    assert one == same
    assert one != other


def test_a_set_is_the_same_after_it_was_read() -> None:
    """Counters, shuffles and what was drawn meanwhile make no other data of them."""
    for make in LOADERS.values():
        data = make()
        before = found(train=data)
        torch.manual_seed(5)
        for _ in data:
            pass
        assert found(train=data) == before


def test_datasets_that_sets_share_are_read_once() -> None:
    """A dataset on disk is read from end to end one time for all the sets that draw from it."""
    images = Images()
    shared = {name: DataLoader(images, batch_size=size) for name, size in (("train", 8), ("calibration", 4))}
    found(**shared, validation=Batches(images), test=DataLoader(images))
    assert len(images.opened) == len(images) + 2


class Named(Images):
    """A dataset too large to be read only to be known."""

    def __init__(self, fingerprint: str) -> None:
        super().__init__()
        self.fingerprint = fingerprint


def test_a_dataset_that_says_what_it_holds_is_not_read() -> None:
    """Its own fingerprint stands for its content, beside the way in which it is batched."""
    images = Named("v1")
    before = found(train=DataLoader(images, batch_size=8, shuffle=True))
    assert images.opened == []
    assert before.warnings == ()
    assert before == found(train=DataLoader(Named("v1"), batch_size=8, shuffle=True))
    for other in (DataLoader(Named("v2"), batch_size=8, shuffle=True), DataLoader(images, batch_size=4, shuffle=True)):
        assert found(train=other).told["train"] != before.told["train"]


class Restless:
    """A loader whose batches go on changing by an iterator."""

    def __init__(self) -> None:
        self.numbers = itertools.count()

    def __iter__(self) -> Iterator[Any]:
        return ((inputs + next(self.numbers), targets) for inputs, targets in batches())


class Drawing(Restless):
    """A loader with random numbers of its own."""

    def __init__(self) -> None:
        self.random = np.random.default_rng()

    def __iter__(self) -> Iterator[Any]:
        return ((inputs + float(self.random.random()), targets) for inputs, targets in batches())


def test_a_generator_of_the_loaders_own_is_known_wherever_it_starts() -> None:
    """Passes seed it: two loaders of one code are the same, whatever they drew before, and are left as they were."""
    one, other = Drawing(), Drawing()
    other.random.random(5)
    state = other.random.bit_generator.state
    assert found(train=one).told == found(train=other).told
    assert found(train=one).warnings == ()
    assert other.random.bit_generator.state == state


class Unending(Restless):
    def __iter__(self) -> Iterator[Any]:
        return itertools.cycle(batches())


def test_a_stream_without_an_end_is_not_known(monkeypatch) -> None:
    """It is read as far as a limit; one that says how long it is, or what it holds, is known."""
    monkeypatch.setattr("compressor.identity.data._LONGEST", 50)
    (warning,) = found(train=Unending()).warnings
    assert "a stream that did not end after 50 batches (give it a __len__ or fingerprint)" in warning
    monkeypatch.setattr("compressor.identity.data._LONGEST", 10**9)
    monkeypatch.setattr("compressor.identity.data._PATIENCE_SECONDS", 0.0)
    (warning,) = found(train=Unending()).warnings
    assert "a stream that did not end after 1 batches" in warning
    monkeypatch.setattr(Unending, "fingerprint", "v1", raising=False)
    assert found(train=Unending()).warnings == ()


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("train", Restless, "data that differ from pass to pass"),
        ("train", lambda: iter(batches()), "an iterator, which can be read only once"),
        ("validation", lambda: (batch for batch in batches()), "an iterator, which can be read only once"),
        ("loss", lambda: functools.partial(F.mse_loss, weight=memoryview(b"1")), "builtins.memoryview"),
    ],
)
def test_what_cannot_be_known_is_never_taken_for_the_same(name, make, said) -> None:
    """It is another thing in every run, told by name with the reason, and nothing was taken from an iterator."""
    given = {name: make()}
    one, two = found(**given), found(**given)
    assert one.stages != two.stages
    assert one.told == two.told
    (warning,) = one.warnings
    assert warning.startswith(f"{name} of the workload holds {said}")
    assert "never taken from disk" in warning
    if "iterator" in said:
        assert len(list(given[name])) == len(batches())


class Broken(Images):
    def __getitem__(self, index: int):
        if index == 100:
            raise OSError("image 100 is cut off")
        return super().__getitem__(index)


def test_a_sample_that_cannot_be_read_is_named_before_any_work() -> None:
    """A damaged file deep in a set is a WorkloadError with the set and the cause."""
    with pytest.raises(WorkloadError, match="train cannot be read from end to end: OSError: image 100 is cut off"):
        found(train=DataLoader(Broken(), batch_size=8))


def test_reading_leaves_the_random_states_alone() -> None:
    """A run draws the same numbers, whether the data had to be read or not."""
    given = workload(train=DataLoader(Images(strength=0.1), batch_size=8, shuffle=True))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    identify(given, [])
    assert torch.equal(torch.get_rng_state(), state)


class Remembering(Net):
    """A model that keeps what it computed in eval mode, and drops it in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Any] = {}

    def train(self, mode=True):  # noqa: FBT002 - as torch has it
        self.kept = {}
        return super().train(mode)

    def forward(self, inputs):
        self.kept["double"] = self.layer.weight.detach() * 2
        return self.layer(inputs)


def test_what_a_model_remembers_of_its_calls_does_not_count() -> None:
    """Cached biases and positions are computed from weights: they are no content."""
    model = Remembering().eval()
    before = found(model=model)
    model(INPUTS)
    assert model.kept
    assert found(model=model) == before
    assert found(model=copy.deepcopy(model)) == before
