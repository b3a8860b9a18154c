"""Accumulated batches give the update of one batch of them all, whatever the loss is a mean over, or say that not."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.metrics import Metric
from compressor.stage import Context
from compressor.stages import Distill, FineTune
from compressor.training.optimizers.choices import SGD
from compressor.training.optimizers.schedules import Constant
from compressor.training.precision import Float32
from workbench.same_data import same_data

GENERATOR = torch.Generator().manual_seed(0)
SETTINGS: dict[str, Any] = {
    "epochs": 1,
    "tail_epochs": 0,
    "accumulate": 2,
    "optimizer": SGD(rate=0.05),
    "schedule": Constant(),
    "clip": None,
    "weight_decay": 0.0,
    "precision": Float32(),
}


def per_token(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def next_token(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


def summed(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="sum")


def known(outputs: Tensor, targets: Tensor) -> Tensor:
    there = targets >= 0
    return F.binary_cross_entropy_with_logits(outputs[there], targets[there])


def present(outputs: Tensor, targets: Tensor) -> Tensor:
    there = ~targets.isnan()
    return (outputs - targets)[there].square().mean()


def padded(rows: int, length: int) -> Tensor:
    """Labels of sequences of other lengths in either half of the rows: short ones first."""
    labels = torch.randint(3, (rows, length), generator=GENERATOR)
    labels[: rows // 2, 2:] = -100
    return labels


def missing(values: Tensor, value: float) -> Tensor:
    found = values.clone()
    found[: len(found) // 2, 1:] = value
    return found


ROWS = torch.randn(8, 4, generator=GENERATOR)
SEQUENCES = torch.randn(8, 5, 4, generator=GENERATOR)
SEVERAL = torch.randn(8, 3, generator=GENERATOR)
CLASSES = torch.arange(8) % 3
SOME = torch.tensor([-100, -100, -100, 1, 0, 1, 2, 0])
SIZE = Metric(name="size", per_sample=lambda outputs, _: -outputs.flatten(1).square().mean(dim=1), bounded=False)

Entry = tuple[Tensor, Tensor, Callable[..., Tensor]]
AS_ONE: dict[str, Entry] = {
    "classes": (ROWS, CLASSES, F.cross_entropy),
    "classes, some ignored": (ROWS, SOME, F.cross_entropy),
    "tokens with padding": (SEQUENCES, padded(8, 5), per_token),
    "language model with padding": (SEQUENCES, padded(8, 5), next_token),
    "a sum over samples": (ROWS, CLASSES, summed),
    "a sum over numbers": (ROWS, SEVERAL, lambda o, t: F.mse_loss(o, t, reduction="sum")),
    "labels, some missing": (ROWS, missing((SEVERAL > 0).float(), -1.0), known),
    "numbers, some missing": (ROWS, missing(SEVERAL, torch.nan), present),
}


def trained(entry: Entry, batches: list[slice], stage: Any) -> tuple[nn.Module, str]:
    """A small network after one update of all these batches, and what was said of the data."""
    inputs, targets, loss = entry
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    workload = same_data(model, [(inputs[part], targets[part]) for part in batches], inputs[:2], loss=loss, metric=SIZE)
    context = Context(progress=False)
    found = stage.apply(copy.deepcopy(model), workload, context)
    return found, context.details["trainings"][0].get("data") or ""


def by_hand(entry: Entry) -> nn.Module:
    """The same network after one update by the loss of all samples at once."""
    inputs, targets, loss = entry
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    loss(model(inputs), targets).backward()
    optimizer.step()
    return model


@pytest.mark.parametrize("name", AS_ONE)
def test_accumulated_batches_are_one_batch_whatever_the_loss_is_a_mean_over(name: str, monkeypatch: Any) -> None:
    """Batches of three and five samples: the update is that of all eight."""
    monkeypatch.setattr("compressor.training.loop.compare", lambda *_, **__: None)  # it may end worse by the metric
    model, said = trained(AS_ONE[name], [slice(3), slice(3, 8)], FineTune(**SETTINGS))
    for ours, hand in zip(model.parameters(), by_hand(AS_ONE[name]).parameters(), strict=True):
        torch.testing.assert_close(ours, hand, rtol=1e-4, atol=1e-6)
    assert "accumulated" not in said


def test_a_teacher_counts_as_the_labels_do(monkeypatch: Any) -> None:
    """Distances to a teacher are means over what counts, too: two batches of padded tokens are as one."""
    monkeypatch.setattr("compressor.training.loop.compare", lambda *_, **__: None)
    teacher = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    stage = {"teacher": teacher, "soft_weight": 0.5}
    entry = AS_ONE["tokens with padding"]
    two, _ = trained(entry, [slice(3), slice(3, 8)], Distill(**SETTINGS, **stage))
    one, _ = trained(entry, [slice(8)], Distill(**{**SETTINGS, "accumulate": 1}, **stage))
    for ours, whole in zip(two.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-6)


NOT_AS_ONE: dict[str, Entry] = {
    "weights of classes": (
        ROWS,
        CLASSES,
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2])),
    ),
    "a root of a mean": (ROWS, SEVERAL, lambda o, t: F.mse_loss(o, t).sqrt()),
    "all pairs": (ROWS, SEVERAL, lambda o, t: (torch.cdist(o, o) - torch.cdist(t, t)).square().mean()),
}


@pytest.mark.parametrize("name", NOT_AS_ONE)
def test_losses_of_which_no_parts_make_the_whole_are_told(name: str) -> None:
    """Each batch counts by its samples then, and the report says that this is not the same."""
    _, said = trained(NOT_AS_ONE[name], [slice(3), slice(3, 8)], FineTune(**SETTINGS))
    assert "accumulated batches are not quite as one" in said
    _, said = trained(NOT_AS_ONE[name], [slice(3), slice(3, 8)], FineTune(**{**SETTINGS, "accumulate": 1}))
    assert "accumulated" not in said
