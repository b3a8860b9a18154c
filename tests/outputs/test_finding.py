"""What outputs say is found by shapes and by what the loss does to them, and refused where neither tells."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.errors import WorkloadError
from compressor.outputs.finding import kind_of
from compressor.outputs.kinds import Classes, Labels, Numbers

B, T, C = 8, 6, 5
GENERATOR = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR)


def labels(*shape: int, classes: int = C) -> Tensor:
    return torch.randint(0, classes, shape, generator=GENERATOR)


def yes(*shape: int) -> Tensor:
    found = (torch.rand(shape, generator=GENERATOR) > 0.6).float()
    found.view(-1)[:2] = torch.tensor([0.0, 1.0])
    return found


def padded() -> Tensor:
    found = labels(B, T)
    found[:, 4:] = -100
    return found


def per_token(outputs: Tensor, targets: Tensor, **options: Any) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), **options)


def next_token(outputs: Tensor, targets: Tensor) -> Tensor:
    return per_token(outputs[:, :-1], targets[:, 1:])


def ctc(outputs: Tensor, targets: Tensor) -> Tensor:
    lengths = [torch.full((B,), size) for size in (outputs.shape[1], targets.shape[1])]
    return F.ctc_loss(outputs.log_softmax(dim=2).transpose(0, 1), targets, *lengths)


def ctc_of_logs(outputs: Tensor, targets: Tensor) -> Tensor:
    lengths = [torch.full((B,), size) for size in (outputs.shape[1], targets.shape[1])]
    return F.ctc_loss(outputs.transpose(0, 1), targets, *lengths)


def focal(outputs: Tensor, targets: Tensor) -> Tensor:
    right = torch.where(targets == 1, outputs.sigmoid(), 1 - outputs.sigmoid())
    return ((1 - right) ** 2 * F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")).mean()


def dice(outputs: Tensor, targets: Tensor) -> Tensor:
    return 1 - 2 * (outputs.sigmoid() * targets).sum() / (outputs.sigmoid() + targets).sum()


def known(outputs: Tensor, targets: Tensor) -> Tensor:
    each = F.binary_cross_entropy_with_logits(outputs, targets.clamp(min=0), reduction="none")
    return (each * (targets >= 0)).mean()


def all_but_nine(outputs: Tensor, targets: Tensor) -> Tensor:
    there = targets != 9
    each = F.binary_cross_entropy_with_logits(outputs, targets.where(there, 0.0), reduction="none")
    return (each * there).sum() / there.sum()


def some_missing() -> Tensor:
    found = yes(B, C)
    found[::2, 1] = -1
    return found


def column(loss: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda outputs, targets: loss(outputs.squeeze(1), targets.float())


FOUND: dict[str, tuple[Tensor, Any, Callable[..., Any], Any]] = {
    "classes": (drawn(B, C), labels(B), F.cross_entropy, Classes()),
    "smoothed": (drawn(B, C), labels(B), nn.CrossEntropyLoss(label_smoothing=0.1), Classes()),
    "weighted": (drawn(B, C), labels(B), nn.CrossEntropyLoss(weight=torch.arange(1.0, 6)), Classes()),
    "two classes": (drawn(B, 2), labels(B, classes=2), F.cross_entropy, Classes()),
    "margins": (drawn(B, C), labels(B), F.multi_margin_loss, Classes(ignored=())),
    "log probabilities": (drawn(B, C).log_softmax(dim=1), labels(B), F.nll_loss, Classes()),
    "probabilities": (
        drawn(B, C).softmax(dim=1),
        labels(B),
        lambda o, t: F.nll_loss(o.log(), t),
        Classes(probabilities=True),
    ),
    "tokens": (drawn(B, T, C), labels(B, T), per_token, Classes(axis=2)),
    "tokens, padded": (drawn(B, T, C), padded(), per_token, Classes(axis=2)),
    "as many tokens as classes": (drawn(B, C, C), labels(B, C), per_token, Classes(axis=2)),
    "classes before as many positions": (drawn(B, C, C), labels(B, C), F.cross_entropy, Classes(axis=1)),
    "word 0 is padding": (
        drawn(B, T, C),
        labels(B, T),
        lambda o, t: per_token(o, t, ignore_index=0),
        Classes(axis=2, ignored=(0,)),
    ),
    "language model": (drawn(B, T, C), labels(B, T), next_token, Classes(axis=2, shift=1)),
    "language model, padded": (drawn(B, T, C), padded(), next_token, Classes(axis=2, shift=1)),
    "pixels": (drawn(B, C, 4, 6), labels(B, 4, 6), F.cross_entropy, Classes()),
    "as many rows as classes": (drawn(B, 4, 4, 6), labels(B, 4, 6, classes=4), F.cross_entropy, Classes()),
    "pixels with a void": (
        drawn(B, C, 4, 6),
        labels(B, 4, 6),
        nn.CrossEntropyLoss(ignore_index=255),
        Classes(ignored=(255,)),
    ),
    "CTC": (drawn(B, 12, C), labels(B, 4, classes=4) + 1, ctc, Classes(axis=2, labelled=False)),
    "CTC of log probabilities": (
        drawn(B, 12, C).log_softmax(dim=2),
        labels(B, 4, classes=4) + 1,
        ctc_of_logs,
        Classes(axis=2, labelled=False),
    ),
    "mixed labels": (drawn(B, C), drawn(B, C).softmax(dim=1), F.cross_entropy, Classes(labelled=False)),
    "one logit": (drawn(B), yes(B), F.binary_cross_entropy_with_logits, Labels()),
    "one logit in a column": (drawn(B, 1), yes(B), column(F.binary_cross_entropy_with_logits), Labels()),
    "one logit, whole numbers": (drawn(B, 1), yes(B).long(), column(F.binary_cross_entropy_with_logits), Labels()),
    "several labels": (drawn(B, C), yes(B, C), nn.BCEWithLogitsLoss(pos_weight=torch.full((C,), 3.0)), Labels()),
    "soft labels": (drawn(B, C), torch.rand(B, C, generator=GENERATOR), nn.BCEWithLogitsLoss(), Labels()),
    "labels with focus": (drawn(B, C), yes(B, C), focal, Labels()),
    "overlap": (drawn(B, 1, 4, 4), yes(B, 1, 4, 4), dice, Labels()),
    "labels missing": (drawn(B, C), some_missing(), known, Labels(ignored=(-100.0, -1.0))),
    "labels missing in later batches": (drawn(B, C), yes(B, C), known, Labels(ignored=(-100.0, -1.0))),
    "labels missing by a number of one's own": (drawn(B, C), yes(B, C), all_but_nine, Labels(ignored=(-100.0, 9.0))),
    "labels missing in later batches, whole numbers": (
        drawn(B, C),
        yes(B, C).long(),
        lambda o, t: known(o, t.float()),
        Labels(ignored=(-100.0, -1.0)),
    ),
    "sigmoid at the end": (drawn(B, C).sigmoid(), yes(B, C), F.binary_cross_entropy, Labels(probabilities=True)),
    "squares of 0 and 1": (drawn(B, C), yes(B, C), F.mse_loss, Numbers()),
    "distances of 0 and 1": (drawn(B, C), yes(B, C), F.l1_loss, Numbers()),
    "numbers": (drawn(B, C), drawn(B, C), F.mse_loss, Numbers()),
    "numbers far away": (drawn(B, 1), 300 + drawn(B, 1), F.smooth_l1_loss, Numbers()),
    "counts": (drawn(B), labels(B).float(), F.poisson_nll_loss, Numbers()),
    "grades as numbers": (drawn(B, 1), labels(B), column(F.mse_loss), Numbers()),
    "embeddings": (drawn(B, 16), labels(B), lambda o, t: torch.cdist(o, o)[t[:, None] != t].mean(), Numbers()),
    "a loss without gradient": (drawn(B, 1), labels(B), lambda o, t: float((o[:, 0] - t).mean()), Numbers()),
}


@pytest.mark.parametrize("name", FOUND)
def test_the_kind_is_found(name: str) -> None:
    """Whatever the loss is called; the metric says nothing of classes."""
    outputs, targets, loss, kind = FOUND[name]
    assert kind_of(outputs, targets, loss, classes=False) == kind


@pytest.mark.parametrize("ignored", [0, C - 1])
@pytest.mark.parametrize(
    ("shape", "held", "loss", "kind"),
    [
        ((B, C), (B,), F.cross_entropy, Classes()),
        ((B, T, C), (B, T), per_token, Classes(axis=2)),
        ((B, T, C), (B, T), next_token, Classes(axis=2, shift=1)),
        ((B, C, 4, 6), (B, 4, 6), F.cross_entropy, Classes()),
        ((3, 300), (3,), F.cross_entropy, Classes()),
    ],
)
def test_a_class_that_the_batch_does_not_hold_is_left_out_all_the_same(shape, held, loss, kind, ignored: int) -> None:
    """Padding comes in later batches alone, where the loss leaves it out, and so does the metric; nothing else."""
    outputs, targets = drawn(*shape), labels(*held, classes=C - 2) + 1
    ignored = ignored and outputs.shape[kind.axis] - 1
    assert ignored not in targets
    assert kind_of(outputs, targets, loss, classes=True) == kind

    def leaving_out(outputs: Tensor, targets: Tensor) -> Tensor:
        return loss(outputs, torch.where(targets == ignored, -100, targets))

    found = kind_of(outputs, targets, leaving_out, classes=True)
    assert found == replace(kind, ignored=tuple(sorted((-100, ignored))))


VOID = 99


def without_void(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs[targets != VOID], targets[targets != VOID])


def without(void: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda outputs, targets: F.cross_entropy(outputs, targets, ignore_index=void)


class Without:
    """An object that is called, with the label in an attribute."""

    def __init__(self, void: int) -> None:
        self.void = void

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, ignore_index=self.void)

    def method(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self(outputs, targets)


@pytest.mark.parametrize(
    ("loss", "void"),
    [
        (nn.CrossEntropyLoss(ignore_index=7), 7),
        (partial(F.cross_entropy, ignore_index=-2), -2),
        (lambda o, t: F.cross_entropy(o, t, ignore_index=1000), 1000),
        (without_void, VOID),
        (without(-9), -9),
        (Without(31), 31),
        (Without(32).method, 32),
        (lambda o, t: Without(3)(o, t) + without(77)(o, t), None),
    ],
)
def test_labels_that_the_loss_names_are_tried(loss: Callable[..., Any], void: int | None) -> None:
    """A number in a loss, wherever it stands, is left out where gradients say so, though no label has it yet."""
    outputs, targets = drawn(B, C), labels(B, classes=3)
    found = kind_of(outputs, targets, loss, classes=True)
    assert isinstance(found, Classes)
    assert set(found.ignored) - {-100, 3} == (set() if void is None else {void})


@pytest.mark.parametrize("hardest", [True, False])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("size", [4, 8, 16])
def test_classes_of_samples_that_a_loss_passes_over_count(size: int, share: float, hardest: bool) -> None:  # noqa: FBT001
    """Losses of the hardest samples of a batch, or of the easiest, leave out no class, whichever ones it holds."""

    def mined(outputs: Tensor, targets: Tensor) -> Tensor:
        each = F.cross_entropy(outputs, targets, reduction="none")
        return each.topk(int(share * len(each)), largest=hardest).values.mean()

    def mined_without_0(outputs: Tensor, targets: Tensor) -> Tensor:
        return mined(outputs[targets > 0], targets[targets > 0])

    for _ in range(20):
        outputs, targets = drawn(size, 10), labels(size, classes=10)
        for loss, ignored in ((mined, {-100}), (mined_without_0, {-100, -1, 0})):
            found = kind_of(outputs, targets, loss, classes=True)
            assert isinstance(found, Classes)
            assert set(found.ignored) <= ignored


@pytest.mark.parametrize("loss", [lambda o, _: o.square().mean(), lambda o, _: float(o.sum())])
def test_a_metric_over_classes_decides_where_the_loss_does_not(loss: Callable[..., Any]) -> None:
    """One dimension fits the targets: that is the classes'. Without such a metric, the outputs are numbers."""
    assert kind_of(drawn(B, T, C), labels(B, T), loss, classes=True) == Classes(axis=2)
    assert kind_of(drawn(B, T, C), labels(B, T), loss, classes=False) == Numbers()


def test_what_nothing_tells_is_refused_with_the_way_out() -> None:
    """As many tokens as classes, and a loss that is none over classes: the user, or the metric, says it."""
    outputs, targets, loss = drawn(B, C, C), labels(B, C), lambda o, _: o.square().mean()
    with pytest.raises(
        WorkloadError, match=r"dimension 1 or 2 of outputs \(8, 5, 5\).*output=compressor.Classes\(axis=1"
    ):
        kind_of(outputs, targets, loss, classes=True)
    assert kind_of(outputs, targets, loss, classes=True, axis=-1) == Classes(axis=2)


def test_a_loss_is_asked_on_a_copy() -> None:
    """A loss that counts its calls has not been called."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            self.calls += 1
            return F.cross_entropy(outputs, targets)

    loss = Counting()
    assert kind_of(drawn(B, C), labels(B), loss, classes=True) == Classes()
    assert loss.calls.item() == 0
