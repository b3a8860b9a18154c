"""Losses and targets as people have them: each trains, gradients reaching the model, or is refused before work."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.batches import Batches, split_batch
from compressor.errors import WorkloadError
from compressor.metrics import Metric
from compressor.running.preflight import check_workload
from compressor.stage import Context
from compressor.stages import FineTune
from compressor.training.snapshots import capture
from compressor.workload import Workload

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(64, 6, generator=GENERATOR)
LABELS = (INPUTS[:, 0] > 0).long() + (INPUTS[:, 1] > 0.5).long()
VALUES = INPUTS[:, :1] * 2 + INPUTS[:, 1:2]
SEVERAL = (INPUTS[:, :3] > 0).float()
SIGNS = torch.sign(INPUTS[:, :1])
WEIGHTS = torch.rand(64, generator=GENERATOR)
ONE_HOT = F.one_hot(LABELS, 3).float()


def anything(name: str = "distance") -> Metric:
    """A metric that is content with any targets: minus the mean of the outputs' squares."""
    return Metric(name=name, per_sample=lambda outputs, _: -outputs.flatten(1).square().mean(dim=1), bounded=False)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A loss with targets of its kind; the model gives `outputs` for a sample; a refusal says `refused`."""

    loss: Any
    targets: Any = None
    outputs: tuple[int, ...] = (3,)
    metric: Metric | None = None
    refused: str = ""
    ends: Callable[[], nn.Module] = nn.Identity

    def workload(self) -> Workload:
        torch.manual_seed(0)
        size = math.prod(self.outputs)
        model = nn.Sequential(
            nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, size), nn.Unflatten(1, self.outputs), self.ends()
        ).eval()
        targets = LABELS if self.targets is None else self.targets
        data = Batches((INPUTS, targets), batch_size=16)
        return Workload(
            name="small",
            model=model,
            example_inputs=INPUTS[:2],
            train=data,
            calibration=data,
            validation=data,
            test=data,
            loss=self.loss,
            metric=self.metric or (Metric.accuracy() if self.targets is None else anything()),
        )


def focal(outputs: Tensor, targets: Tensor) -> Tensor:
    """Lin et al. 2017, arXiv:1708.02002, eq. 4, gamma = 2."""
    entropy = F.cross_entropy(outputs, targets, reduction="none")
    return ((1 - (-entropy).exp()).square() * entropy).mean()


def dice(outputs: Tensor, targets: Tensor) -> Tensor:
    """Milletari et al. 2016, arXiv:1606.04797, sec. 3."""
    share = outputs.sigmoid()
    return 1 - 2 * (share * targets).sum() / (share.square().sum() + targets.square().sum())


def weighted(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
    return (F.cross_entropy(outputs, targets["target"], reduction="none") * targets["weight"]).mean()


def nested(outputs: Tensor, targets: Any) -> Tensor:
    (labels, (weights, _)) = targets
    return (F.cross_entropy(outputs, labels, reduction="none") * weights).mean()


def in_batch_triplets(outputs: Tensor, targets: Tensor) -> Tensor:
    """Every sample with one of its own class and one of another, in the batch (Schroff et al. 2015)."""
    alike = targets[:, None] == targets[None, :]
    apart = torch.cdist(outputs, outputs)
    far = apart.masked_fill(~alike, 0.0).amax(dim=1)
    near = apart.masked_fill(alike, 1e3).amin(dim=1)
    return F.relu(far - near + 0.2).mean()


def cosine(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cosine_embedding_loss(outputs[:, 0], outputs[:, 1], targets[:, 0])


def ctc(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """Graves et al. 2006; outputs (N, T, C), labels padded."""
    scores = outputs.log_softmax(dim=2).transpose(0, 1)
    lengths = torch.full((len(outputs),), outputs.shape[1])
    return F.ctc_loss(scores, targets["labels"], lengths, targets["lengths"])


class Centres(nn.Module):
    """Wen et al. 2016: the distance to the centre of one's class."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.centres = nn.Parameter(torch.randn(3, 3), requires_grad=not frozen)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        near = (outputs - self.centres[targets]).square().sum(dim=1).mean()
        return F.cross_entropy(outputs, targets) + 0.01 * near


class Perceptual(nn.Module):
    """Features of a network are compared; it wants gradients, as networks do that nobody froze."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(1, 4)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(self.network(outputs), self.network(targets))


def in_place(outputs: Tensor, targets: Tensor) -> Tensor:
    targets -= 1
    return F.cross_entropy(outputs, targets.clamp(min=0))


def through_numpy(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray((outputs.detach().numpy() - ONE_HOT[: len(targets)].numpy()) ** 2)).mean()


def rooted(outputs: Tensor, targets: Tensor) -> Tensor:
    """A root at 0: its value is finite, its gradient is not."""
    return ((outputs - outputs.detach()).square().sum(dim=1)).sqrt().mean() + F.cross_entropy(outputs, targets)


REGRESSION = {"targets": VALUES, "outputs": (1,), "metric": Metric.mse()}
BINARY = {"targets": SEVERAL, "metric": anything()}

CASES = {
    # every common loss of torch
    "cross-entropy": Case(loss=nn.CrossEntropyLoss()),
    "cross-entropy, weighted classes": Case(loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 4.0]))),
    "cross-entropy, smoothed": Case(loss=nn.CrossEntropyLoss(label_smoothing=0.1)),
    "cross-entropy, sum": Case(loss=nn.CrossEntropyLoss(reduction="sum")),
    "cross-entropy, an ignored class": Case(loss=nn.CrossEntropyLoss(ignore_index=2)),
    "cross-entropy of shares": Case(loss=nn.CrossEntropyLoss(), targets=0.9 * ONE_HOT + 0.1 / 3, metric=Metric.mse()),
    "cross-entropy at every position": Case(
        loss=nn.CrossEntropyLoss(), targets=torch.stack([LABELS] * 4, dim=1), outputs=(3, 4), metric=Metric.accuracy()
    ),
    "NLL": Case(loss=nn.NLLLoss(), ends=lambda: nn.LogSoftmax(dim=1)),
    "BCE": Case(loss=nn.BCELoss(), ends=nn.Sigmoid, **BINARY),
    "BCE with logits": Case(loss=nn.BCEWithLogitsLoss(), **BINARY),
    "BCE with logits, weighted": Case(loss=nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0])), **BINARY),
    "MSE": Case(loss=nn.MSELoss(), **REGRESSION),
    "L1": Case(loss=nn.L1Loss(), **REGRESSION),
    "smooth L1": Case(loss=nn.SmoothL1Loss(beta=0.5), **REGRESSION),
    "Huber": Case(loss=nn.HuberLoss(delta=0.5), **REGRESSION),
    "Poisson NLL": Case(loss=nn.PoissonNLLLoss(), targets=VALUES.abs().round(), outputs=(1,), metric=Metric.mse()),
    "Gaussian NLL": Case(
        loss=lambda outputs, targets: F.gaussian_nll_loss(outputs[:, :1], targets, outputs[:, 1:].exp()),
        targets=VALUES,
        outputs=(2,),
    ),
    "Kullback-Leibler": Case(
        loss=nn.KLDivLoss(reduction="batchmean"), targets=0.9 * ONE_HOT + 0.1 / 3, ends=lambda: nn.LogSoftmax(dim=1)
    ),
    "CTC": Case(
        loss=ctc,
        targets={"labels": LABELS[:, None].repeat(1, 2) % 2 + 1, "lengths": torch.full((64,), 1)},
        outputs=(5, 4),
    ),
    "multi margin": Case(loss=nn.MultiMarginLoss()),
    "multilabel margin": Case(
        loss=nn.MultiLabelMarginLoss(), targets=torch.cat([LABELS[:, None], torch.full((64, 2), -1)], dim=1)
    ),
    "multilabel soft margin": Case(loss=nn.MultiLabelSoftMarginLoss(), **BINARY),
    "soft margin": Case(loss=nn.SoftMarginLoss(), targets=SIGNS, outputs=(1,)),
    "hinge embedding": Case(loss=nn.HingeEmbeddingLoss(), targets=SIGNS, outputs=(1,)),
    "cosine embedding": Case(loss=cosine, targets=SIGNS, outputs=(2, 4)),
    "triplet margin": Case(
        loss=lambda outputs, _: F.triplet_margin_loss(outputs[:, 0], outputs[:, 1], outputs[:, 2]),
        targets=SIGNS,
        outputs=(3, 4),
    ),
    "triplets in the batch": Case(loss=in_batch_triplets, metric=anything()),
    # one's own
    "focal": Case(loss=focal),
    "dice": Case(loss=dice, **BINARY),
    "a lambda of two terms": Case(loss=lambda o, t: F.cross_entropy(o, t) + 0.1 * o.square().mean()),
    "a vector of one number": Case(loss=lambda o, t: F.cross_entropy(o, t).reshape(1)),
    "in float64": Case(loss=lambda o, t: F.cross_entropy(o.double(), t)),
    "weights of samples": Case(
        loss=weighted, targets={"target": LABELS, "weight": WEIGHTS}, metric=Metric.accuracy()
    ),
    "nested targets": Case(loss=nested, targets=(LABELS, (WEIGHTS, ONE_HOT)), metric=Metric.accuracy()),
    "centres that are frozen": Case(loss=Centres(frozen=True)),
    # what cannot train, each with its way out
    "centres that learn": Case(
        loss=Centres(frozen=False), refused=r"parameters of its own .*: centres\..*requires_grad_\(False\)"
    ),
    "a network nobody froze": Case(
        loss=Perceptual(), refused=r"network\.weight.*requires_grad_\(False\)", **REGRESSION
    ),
    "one number a sample": Case(
        loss=nn.CrossEntropyLoss(reduction="none"), refused=r"one number, got shape \(16,\).*mean"
    ),
    "NaN": Case(loss=lambda o, t: F.cross_entropy(o, t) * math.nan, refused="must be finite, got nan"),
    "infinity": Case(loss=lambda o, t: F.cross_entropy(o, t) / 0, refused="must be finite, got inf"),
    "a Python float": Case(loss=lambda o, t: float(F.cross_entropy(o, t)), refused="depends on no weight"),
    "a whole number": Case(loss=lambda o, t: int((o.argmax(dim=1) != t).sum()), refused="depends on no weight"),
    "an error rate": Case(loss=lambda o, t: (o.argmax(dim=1) != t).float().mean(), refused="depends on no weight"),
    "detached": Case(loss=lambda o, t: F.cross_entropy(o.detach(), t), refused="depends on no weight by a gradient"),
    "through NumPy": Case(loss=through_numpy, refused="depends on no weight by a gradient"),
    "None": Case(loss=lambda o, t: None, refused="one number, got None; let it end with its return"),
    "a pair": Case(loss=lambda o, t: (F.cross_entropy(o, t), {}), refused=r"got a tuple of 2; .*\[0\]"),
    "a dict": Case(loss=lambda o, t: {"loss": F.cross_entropy(o, t)}, refused=r"got a dict of 1; .*\['loss'\]"),
    "a text": Case(loss=lambda o, t: "0.5", refused="got the text '0.5'; give the number itself"),
    "one argument": Case(loss=lambda o: o.mean(), refused=r"TypeError.*It must take \(outputs, targets\)"),
    "written into targets": Case(loss=in_place, refused=r"writes into its targets.*targets = targets.clone\(\)"),
    "a gradient that is not finite": Case(loss=rooted, refused="while its gradient is not finite.*clamp"),
    "truth values against logits": Case(
        loss=nn.BCEWithLogitsLoss(), targets=SEVERAL > 0, refused=r"with targets.float\(\) it works: convert them"
    ),
    "32-bit labels": Case(loss=nn.CrossEntropyLoss(), targets=LABELS.int(), refused=r"targets.long\(\) it works"),
    "CTC of labels that do not fit": Case(
        loss=ctc,
        targets={"labels": torch.ones(64, 4, dtype=torch.long), "lengths": torch.tensor([1, 4] * 32)},
        outputs=(5, 4),
        refused="has no path in CTC: take zero_infinity=True",
    ),
    "a column against a row": Case(loss=nn.MSELoss(), targets=VALUES[:, 0], outputs=(1,), refused=r"unsqueeze\(1\)"),
}  # fmt: skip


def loss_of(model: nn.Module, workload: Workload) -> float:
    with torch.no_grad():
        losses = [float(workload.loss(model(inputs), targets)) for inputs, targets in map(split_batch, workload.train)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.refused])
def test_it_trains(name: str) -> None:
    """The check before work lets it pass, training lowers the loss, and every weight of the model moves."""
    workload = CASES[name].workload()
    stage = FineTune(epochs=6, tail_epochs=0)
    check_workload(workload, [stage])
    # The score is not what this is about: the last epoch is what is looked at.
    judged = replace(workload, metric=Metric(name="even", per_sample=lambda outputs, _: outputs.new_ones(len(outputs))))
    model = stage.apply(copy.deepcopy(workload.model), judged, Context(progress=False)).eval()
    assert loss_of(model, workload) < loss_of(workload.model, workload) - 1e-4
    before, after = capture(workload.model), capture(model)
    assert all(not torch.equal(before[weight], after[weight]) for weight in before)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar")
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.refused])
def test_it_is_refused_with_the_way_out(name: str) -> None:
    """Before any work, with what is wrong and what helps."""
    case = CASES[name]
    with pytest.raises(WorkloadError, match=f"(?s){case.refused}"):
        check_workload(case.workload(), [FineTune()])


def test_there_are_forty_of_them() -> None:
    """Every common loss of torch and a dozen of people's own."""
    assert len(CASES) >= 40


def test_a_loss_that_reads_the_original_is_refused() -> None:
    """Decay that is written into the loss would be that of the reference, whose weights no stage trains."""
    workload = CASES["cross-entropy"].workload()
    model = workload.model

    def decaying(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) + 1e-3 * sum(own.square().sum() for own in model.parameters())

    with pytest.raises(WorkloadError, match=r"reads weights of workload.model.*weight_decay="):
        check_workload(replace(workload, loss=decaying), [FineTune()])
    assert all(own.grad is None for own in model.parameters())
