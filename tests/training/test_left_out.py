"""Batches that nothing can be learned from are left out and said; those that only look like it are trained."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.batches import Batches
from compressor.errors import StageError
from compressor.metrics import Metric
from compressor.outputs.kinds import Classes, Labels, Numbers
from compressor.running.preflight import check_workload
from compressor.stage import Context
from compressor.stages import Distill, FineTune, ReestimateBatchNorm
from compressor.training.loop import train
from compressor.training.optimizers.choices import SGD
from compressor.training.optimizers.schedules import Constant
from compressor.training.precision import Float32
from compressor.workload import Workload
from workbench.same_data import same_data

GENERATOR = torch.Generator().manual_seed(0)
MAPS = torch.randn(9, 3, 6, 6, generator=GENERATOR)
LABELS = torch.arange(9) % 2
STILL = {
    "epochs": 1,
    "precision": Float32(),
    "optimizer": SGD(rate=0.05),
    "clip": None,
    "weight_decay": 0.0,
    "patience": None,
}


def pooled() -> nn.Module:
    """A BatchNorm on maps of 6 x 6, and one on vectors."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(4),
        nn.Linear(4, 2),
    )


def mapped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def workload(make: Callable[[], nn.Module], inputs: Tensor, targets: Tensor, size: int, **more: Any) -> Workload:
    torch.manual_seed(0)
    return same_data(make().eval(), Batches((inputs, targets), batch_size=size), inputs[:2], **more)


def trained(workload: Workload, stage: Any) -> tuple[nn.Module, str]:
    """The model after all epochs of the stage, and what was said of the data."""
    context = Context(progress=False)
    model = stage.apply(copy.deepcopy(workload.model), workload, context)
    return model, context.details["trainings"][0].get("data") or ""


def test_a_lone_map_is_trained() -> None:
    """Nine samples in batches of four are three updates, as a loop by hand makes them: the last is of one sample."""
    given = workload(mapped, MAPS, LABELS, 4)
    by_hand = copy.deepcopy(given.model).train()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    losses = []
    for inputs, targets in given.train:
        optimizer.zero_grad()
        loss = given.loss(by_hand(inputs), targets)
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    model = copy.deepcopy(given.model)
    logs = train(
        model,
        given,
        FineTune(**STILL, schedule=Constant(), tail_epochs=0),
        context=Context(progress=False),
        keep_last=True,
    )
    assert len(losses) == 3
    assert logs[0].loss == pytest.approx(sum(losses) / 3, rel=1e-5)
    for ours, hand in zip(model.state_dict().values(), by_hand.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, hand, rtol=1e-4, atol=1e-5)


def test_a_lone_vector_is_left_out_and_said() -> None:
    """The last of nine samples meets a BatchNorm of vectors: two batches are trained, and no statistic counts three."""
    given = workload(pooled, MAPS, LABELS, 4)
    model, said = trained(given, FineTune(**STILL, tail_epochs=0))
    assert "batches of one sample are left out" in said
    model = copy.deepcopy(given.model)
    train(model, given, FineTune(**STILL, tail_epochs=0), context=Context(progress=False), keep_last=True)
    assert [int(model[number].num_batches_tracked) for number in (1, 5)] == [2, 2]


def test_eight_of_nine_in_batches_of_one_are_not_enough_for_vectors() -> None:
    """Nothing but lone vectors: refused, and the refusal says why there was no batch."""
    given = workload(pooled, MAPS, LABELS, 1)
    with pytest.raises(StageError, match=r"no batch to train on .*one sample are left out: BatchNorm meets one value"):
        trained(given, FineTune(**STILL))


def test_lone_maps_give_statistics() -> None:
    """Two maps in batches of one: the means of both, averaged; vectors in batches of one are refused."""
    given = workload(lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 2)), MAPS[:2], LABELS[:2], 1)
    model = ReestimateBatchNorm().apply(given.model, given, Context(progress=False))
    torch.testing.assert_close(model[0].running_mean, MAPS[:2].mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    vectors = workload(pooled, MAPS, LABELS, 1)
    with pytest.raises(StageError, match="at least 2 values a channel"):
        ReestimateBatchNorm().apply(vectors.model, vectors, Context(progress=False))


def tokens() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def masked(outputs: Tensor, targets: Tensor) -> Tensor:
    there = ~targets.isnan()
    return (outputs - targets)[there].square().mean()


def known(outputs: Tensor, targets: Tensor) -> Tensor:
    there = targets >= 0
    return F.binary_cross_entropy_with_logits(outputs[there], targets[there].float())


def without(targets: Tensor, value: float) -> Tensor:
    """`targets` of twelve samples, those of the second batch of four missing."""
    return torch.cat([targets[:4], torch.full_like(targets[4:8], value), targets[8:]])


ROWS = torch.randn(12, 4, generator=GENERATOR)
SEQUENCES = torch.randn(12, 5, 4, generator=GENERATOR)
UNLABELLED = {
    "classes": (ROWS, without(torch.arange(12) % 3, -100), F.cross_entropy, "accuracy"),
    "tokens": (SEQUENCES, without(torch.randint(3, (12, 5), generator=GENERATOR), -100), token_loss, "token_accuracy"),
    "labels": (ROWS, without((ROWS[:, :3] > 0).float(), -1.0), known, "label_accuracy"),
    "numbers": (ROWS, without(ROWS[:, :3], torch.nan), masked, None),
}


@pytest.mark.parametrize("kind", UNLABELLED)
@pytest.mark.parametrize("stage", [FineTune(**STILL), Distill(**STILL, soft_weight=0.5)], ids=["fine_tune", "distill"])
def test_batches_without_a_label_are_left_out_and_said(kind: str, stage: Any) -> None:
    """Of three batches the second has no label: the rate is not halved, and the note names the cause."""
    inputs, targets, loss, metric = UNLABELLED[kind]
    judged = Metric.named(metric) if metric else Metric(name="size", per_sample=lambda o, _: -o.square().mean(dim=1))
    given = workload(tokens, inputs, targets, 4, loss=loss, metric=judged)
    context = Context(progress=False)
    stage.apply(copy.deepcopy(given.model), given, context)
    told = context.details["trainings"][0]
    assert "batches without a label that counts are left out" in told["data"]
    assert "halved" not in told["rate_from"]


def test_a_loss_that_is_infinite_where_there_are_labels_is_no_such_batch() -> None:
    """One label in the batch is enough: what is not finite then is a divergence, as ever."""
    targets = torch.arange(12) % 3
    given = workload(tokens, ROWS.clone(), targets, 4, loss=lambda o, t: F.cross_entropy(o, t) / 0.0)
    with pytest.raises(StageError, match="does not converge"):
        trained(given, FineTune(**STILL))


@pytest.mark.parametrize(
    ("kind", "targets", "asked"),
    [
        (Classes(), torch.tensor([-100, -100]), 0),
        (Classes(), torch.tensor([-100, 1]), 1),
        (Classes(axis=2, shift=1), torch.tensor([[5, -100, -100]]), 0),
        (Classes(axis=2, shift=1), torch.tensor([[-100, 4, 5]]), 2),
        (Classes(labelled=False), torch.tensor([[-100]]), None),
        (Classes(), torch.tensor([[0.5, 0.5]]), None),
        (Labels(ignored=(-1.0,)), torch.tensor([[-1.0, torch.nan]]), 0),
        (Labels(ignored=(-1.0,)), torch.tensor([[-1, 0]]), 1),
        (Numbers(), torch.tensor([torch.nan, torch.nan]), 0),
        (Numbers(), torch.tensor([torch.nan, 0.0]), 1),
        (Numbers(), torch.tensor([3, 4]), 2),
        (Numbers(), "a name", None),
    ],
)
def test_how_much_targets_ask(kind: Any, targets: Any, asked: int | None) -> None:
    """Labels that count, one by one; nothing is said of targets that have none at places of their own."""
    assert kind.asked(targets) == asked


@pytest.mark.parametrize("kind", [kind for kind in UNLABELLED if kind != "numbers"])
def test_a_first_batch_without_a_label_is_no_obstacle(kind: str) -> None:
    """Checks before work, the kind of output and a training take the next batch that has one."""
    inputs, targets, loss, metric = UNLABELLED[kind]
    order = torch.cat([torch.arange(4, 8), torch.arange(4), torch.arange(8, 12)])
    how = {"loss": loss, "metric": Metric.named(metric or "")}
    given = workload(tokens, inputs[order], targets[order], 4, **how)
    judged = check_workload(given, [FineTune(**STILL)])
    assert judged.output == check_workload(workload(tokens, inputs[8:], targets[8:], 4, **how)).output
    context = Context(progress=False)
    FineTune(**STILL).apply(copy.deepcopy(given.model), given, context)
    assert "batches without a label that counts are left out" in context.details["trainings"][0]["data"]
