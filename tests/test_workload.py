"""Workloads split data without leaks and take inputs and outputs in the usual forms."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from compressor.batches import Batches
from compressor.metrics import Metric
from compressor.workload import Workload, batches_of, call_model, output_tensor, predict


def rows(data) -> set[float]:
    return {float(value) for inputs, _ in batches_of(data) for value in inputs[:, 0]}


@pytest.fixture
def workload() -> Workload:
    """200 numbered samples of 4 classes, the last class rare; the number is the sample's first feature."""
    features = torch.arange(200.0).unsqueeze(1).repeat(1, 3)
    targets = torch.cat([torch.arange(180) % 3, torch.full((20,), 3)])
    return Workload.from_datasets(
        nn.Linear(3, 4),
        train=(features, targets),
        test=(features + 1000, targets),
        calibration_samples=40,
        batch_size=16,
    )


def test_no_sample_decides_and_trains(workload):
    """Validation is apart from train; calibration is a part of train."""
    validation, calibration = rows(workload.validation), rows(workload.calibration)
    train = {float(workload.train.samples[0][index, 0]) for index in workload.train.indices}
    assert len(validation) == 20
    assert validation.isdisjoint(train)
    assert len(calibration) == 40
    assert calibration <= train
    assert validation | train == set(range(200))


def test_the_split_is_stratified_and_repeats(workload):
    """A rare class of one in ten keeps its share of validation, and the same call splits the same way."""
    labels = Counter(int(target) for _, targets in workload.validation for target in targets)
    assert labels == {0: 6, 1: 6, 2: 6, 3: 2}
    again = Workload.from_datasets(
        workload.model, train=workload.train.samples, test=workload.test.samples, calibration_samples=40, batch_size=16
    )
    assert rows(again.validation) == rows(workload.validation)
    assert torch.equal(again.calibration.indices, workload.calibration.indices)


def test_given_validation_leaves_train_whole():
    """With validation= every training sample trains."""
    pair = (np.zeros((30, 2), dtype=np.float32), np.arange(30) % 3)
    workload = Workload.from_datasets(nn.Linear(2, 3), train=pair, validation=pair, test=pair, calibration_samples=8)
    assert len(workload.train.indices) == 30
    assert isinstance(next(iter(workload.test))[0], torch.Tensor)


@dataclass
class Output:
    """What Hugging Face models return: attributes, the judged one called logits."""

    logits: torch.Tensor
    loss: None = None


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)

    def forward(self, input_ids, attention_mask):
        return Output(logits=(self.embedding(input_ids) * attention_mask.unsqueeze(2)).mean(dim=1))


class Sentences(torch.utils.data.Dataset):
    """A map-style dataset of dicts with labels."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index):
        return {"input_ids": torch.tensor([index % 10, 1, 2]), "attention_mask": torch.ones(3), "labels": index % 4}


def test_dict_batches_reach_the_model_by_name():
    """A dataset of dicts gives named inputs, the labels apart, and the logits are judged."""
    workload = Workload.from_datasets(Named(), train=Sentences(), test=Sentences(), calibration_samples=8, batch_size=4)
    assert set(workload.example_inputs) == {"input_ids", "attention_mask"}
    assert workload.example_inputs["input_ids"].shape == (2, 3)
    inputs, targets = next(iter(workload.test))
    assert predict(workload.model, inputs).shape == (4, 4)
    assert targets.tolist() == [0, 1, 2, 3]


def test_outputs_in_every_usual_form():
    """A tensor, a tuple, a dict and an object with logits are all judged by their first or named tensor."""
    value = torch.ones(2)
    for output in (value, (value, None), {"logits": value, "other": None}, {"out": value}, Output(logits=value)):
        assert output_tensor(output) is value
    with pytest.raises(TypeError, match="must return a tensor"):
        output_tensor([1, 2])


def test_tuples_are_positional():
    """A pair of inputs is given as two arguments."""
    assert call_model(lambda first, second: first - second, (torch.tensor(3), torch.tensor(1))) == 2


def test_own_metric_and_loss_are_used():
    """A metric of one's own replaces the named one; without classes the loss is the squared error."""
    data = (torch.zeros(20, 2), torch.zeros(20, 1))
    metric = Metric(name="within", per_sample=lambda outputs, targets: ((outputs - targets).abs() < 1).double()[:, 0])
    workload = Workload.from_datasets(nn.Linear(2, 1), train=data, test=data, metric=metric, calibration_samples=4)
    assert workload.metric.score(torch.tensor([[0.5], [2.0]]), torch.zeros(2, 1)) == 0.5
    assert float(workload.loss(torch.full((1, 1), 2.0), torch.zeros(1, 1))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": (torch.zeros(0, 2), torch.zeros(0))}, "train has no samples"),
        ({"train": (torch.zeros(3, 2), torch.zeros(4))}, "same number of samples"),
        ({"validation_fraction": 20}, r"in \(0, 1\); got 20"),
        ({"metric": "f2"}, "metric must be one of"),
    ],
)
def test_wrong_data_is_refused(arguments, message):
    """Empty sets, pairs that do not match and fractions in percent are refused before any work."""
    data = (torch.zeros(20, 2), torch.arange(20) % 2)
    with pytest.raises(ValueError, match=message):
        Workload.from_datasets(nn.Linear(2, 2), **{"train": data, "test": data, **arguments})


def test_a_stream_is_not_a_dataset():
    """A generator cannot be indexed: the way out is named."""
    with pytest.raises(TypeError, match=r"use Workload\.from_loaders"):
        Workload.from_datasets(nn.Linear(2, 2), train=iter([]), test=iter([]))


def test_batches_cover_every_sample_once():
    """A shuffled pass gives each sample once; a dropped last batch is the incomplete one."""
    data = (torch.arange(10.0).unsqueeze(1), torch.zeros(10))
    batches = Batches(data, batch_size=4, shuffle=True)
    assert sorted(rows(batches)) == list(range(10))
    assert [len(targets) for _, targets in batches] == [4, 4, 2]
    assert len(list(Batches(data, batch_size=4, drop_last=True))) == 2
