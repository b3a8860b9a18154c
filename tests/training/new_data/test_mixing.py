"""New data beside old: in which turns, which part is held out, and what is no data."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from compressor.batches import Batches
from compressor.errors import WorkloadError
from compressor.metrics import Metric
from compressor.stages import Distill, FineTune, QuantizationAwareTraining
from compressor.training.new_data.mixing import Mixed, NewData
from compressor.training.validation import Joined, of_parts, with_part


@pytest.mark.parametrize(
    ("replay", "wanted"),
    [
        (0.0, "abcd"),
        (0.25, "abc1d"),
        (1 / 3, "ab1cd2"),
        (0.5, "a1b2c3d1"),
        (0.75, "a123b123c123d123"),
    ],
)
def test_old_batches_are_a_part_of_all_and_come_again(replay: float, wanted: str) -> None:
    """Four new batches, a to d, and three old ones: in turns, spread evenly, and as many as it says."""
    mixed = Mixed(list("abcd"), list("123"), replay)
    assert "".join(mixed) == wanted
    assert "".join(mixed) == wanted
    assert len(mixed) == len(wanted)


def test_a_pass_follows_from_the_seed() -> None:
    """Both shuffle anew at every pass, and the same under one seed."""
    parts = [Batches((torch.arange(12.0) + start, torch.zeros(12)), batch_size=3, shuffle=True) for start in (0, 100)]
    passes = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        passes.append(torch.cat([inputs for inputs, _ in Mixed(parts[0], parts[1], 0.5)]))
    assert torch.equal(passes[0], passes[1])
    assert not torch.equal(passes[0], passes[2])
    assert sorted(passes[0].tolist()) == sorted(passes[2].tolist()) == [*range(12), *range(100, 112)]


def test_old_data_without_a_batch_are_refused() -> None:
    with pytest.raises(WorkloadError, match=r"old training data have no batches to replay; set replay=0\.0"):
        list(Mixed(["new"], [], 0.5))


def test_joined_data_are_one_after_the_other() -> None:
    joined = Joined(["a", "b"], ["c"])
    assert ("".join(joined), len(joined)) == ("abc", 3)


@pytest.mark.parametrize(
    ("metric", "one", "other", "wanted"),
    [
        # 90 of 100 and 1 of 2, by hand: the mean of 0.9 and 0.5.
        (Metric.accuracy(), torch.tensor([1.0] * 90 + [0.0] * 10), torch.tensor([1.0, 0.0]), 0.7),
        # Rows of two numbers, hits and how many: the ratio of the sums, 3 of 4 and 1 of 4.
        (Metric.token_accuracy(), torch.tensor([[1.0, 2.0], [2.0, 2.0]]), torch.tensor([[1.0, 4.0]]), 0.5),
        (Metric.label_accuracy(), torch.tensor([1.0, 0.0]), torch.tensor([torch.nan]), 0.5),
    ],
)
def test_each_part_counts_as_much(metric, one, other, wanted) -> None:
    """Rows of one number and of several, and a part in which nothing is asked for."""
    rows = torch.cat([with_part(one, 0), with_part(other, 1)])
    assert of_parts(metric).aggregate(rows) == pytest.approx(wanted)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    assert of_parts(metric).aggregate(rows[order]) == pytest.approx(wanted)
    assert of_parts(metric).aggregate(with_part(one, 0)) == pytest.approx(metric.aggregate(one))


def seen(data) -> list[float]:
    return sorted(float(value) for inputs, _ in data for value in inputs.flatten())


@pytest.mark.parametrize("form", ["pair", "arrays", "dataset", "loader", "list", "batches"])
def test_a_tenth_is_held_out_the_same_each_time(form: str) -> None:
    """Of 40 samples, or 10 batches, in whatever form: no sample is in both parts, and none is lost."""
    numbers = torch.arange(40.0)
    given = {
        "pair": (numbers, numbers.long()),
        "arrays": (numbers.numpy(), np.arange(40)),
        "dataset": TensorDataset(numbers, numbers.long()),
        "loader": DataLoader(TensorDataset(numbers, numbers.long()), batch_size=4, shuffle=True),
        "list": [(part, part.long()) for part in numbers.split(4)],
        "batches": Batches((numbers, numbers.long()), batch_size=4, shuffle=True),
    }[form]
    first, again = NewData.of(given), NewData.of(given)
    assert len(seen(first.validation)) == 4
    assert seen(first.validation) == seen(again.validation)
    assert sorted(seen(first.train) + seen(first.validation)) == numbers.tolist()


def test_own_transforms_stay_and_augmentations_are_for_training_alone() -> None:
    data = Batches(
        (torch.arange(10.0), torch.zeros(10)),
        batch_size=5,
        transform=lambda inputs: -inputs,
        augment=lambda inputs, _: inputs + 1000,
    )
    parts = NewData.of(data)
    assert max(seen(parts.train)) < -999
    assert -10 < seen(parts.validation)[0] <= 0


def generated():
    yield torch.zeros(2), torch.zeros(2)


@pytest.mark.parametrize("kind", [FineTune, Distill, QuantizationAwareTraining])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": torch.zeros(4, 3)}, r"got inputs alone, \(4, 3\): give each of them its target"),
        ({"data": [torch.zeros(4, 3)] * 3}, "or a dict with labels"),
        ({"data": [{"pixels": torch.zeros(4, 3)}, {"pixels": torch.zeros(4, 3)}]}, "or a dict with labels"),
        ({"data": generated()}, "an iterator, which can be read once"),
        ({"data": []}, "data is what the model goes on learning from"),
        ({"data": 3}, "data is what the model goes on learning from"),
        ({"data": (torch.zeros(1, 3), torch.zeros(1))}, "none of them can be held out"),
        ({"data": (torch.zeros(4, 3), torch.zeros(3))}, "the same number of samples"),
        ({"data": "nowhere"}, "its name, package.module:function; got 'nowhere'"),
        ({"data": "math:nothing"}, "math has no function 'nothing'"),
        ({"data": "math:sqrt"}, "data: math:sqrt raised TypeError"),
        ({"replay": 1.0}, r"in \[0, 1\); got 1.0"),
        ({"replay": -0.1}, r"in \[0, 1\); got -0.1"),
        ({"replay": 30}, r"got 30; did you mean 0.3\?"),
    ],
)
def test_what_is_no_data_is_refused(kind, settings, message) -> None:
    """As the stage is built: data without targets, that can be read once, or that are none; shares out of range."""
    with pytest.raises(ValueError, match=message):
        kind(**settings)
