"""Outputs that no loss sees stay where they were, those with losses of their own are trained, and both are told."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.errors import WorkloadError
from compressor.metrics import Metric
from compressor.outputs.kinds import Classes, OtherOutput
from compressor.pruning.schedules import Linear
from compressor.running.preflight import check_workload
from compressor.sparsity.schedules import Polynomial
from compressor.stage import Context
from compressor.stages.channel_pruning import PruneChannels
from compressor.stages.distillation import Distill
from compressor.stages.fine_tuning import FineTune
from compressor.stages.sparse_training import SparseTraining
from compressor.stages.weight_sparsifying import SparsifyWeights
from compressor.training.optimizers.choices import AdamW
from compressor.training.optimizers.schedules import OneCycle
from compressor.training.other_outputs import Others, relative_changes
from compressor.training.precision import Float32
from compressor.workload import Workload

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(256, 10, generator=GENERATOR)
TARGETS = INPUTS[:, :3].argmax(dim=1)


@dataclass
class Answer:
    """Outputs as many libraries give them."""

    logits: Tensor
    depth: Tensor


class Pair(NamedTuple):
    """The same by place and by name."""

    logits: Tensor
    depth: Tensor


FORMS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "tuple": (lambda logits, depth: (logits, depth), "1"),
    "list": (lambda logits, depth: [logits, depth], "1"),
    "dict": (lambda logits, depth: {"logits": logits, "depth": depth}, "depth"),
    "dataclass": (Answer, "depth"),
    "named tuple": (Pair, "depth"),
    "nested": (lambda logits, depth: (logits, {"maps": [depth]}), "1.maps.0"),
}


class TwoHeads(nn.Module):
    """A shared trunk under a head of three classes, which is judged, and one of two numbers."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any] = FORMS["tuple"][0]) -> None:
        super().__init__()
        self.trunk, self.first, self.second = nn.Linear(10, 32), nn.Linear(32, 3), nn.Linear(32, 2)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        features = self.trunk(x).relu()
        return self.form(self.first(features), self.second(features))


def workload_of(model: nn.Module, **more: Any) -> Workload:
    data = INPUTS, TARGETS
    return Workload.from_datasets(model, train=data, validation=data, test=data, batch_size=32, **more)


def pruned(model: nn.Module) -> nn.Module:
    """`model` without a quarter of its hidden units."""
    student = copy.deepcopy(model)
    with torch.no_grad():
        student.trunk.weight[:8], student.trunk.bias[:8] = 0.0, 0.0
    return student


@pytest.fixture
def two_heads() -> TwoHeads:
    torch.manual_seed(0)
    return TwoHeads()


def far(student: nn.Module, reference: nn.Module) -> float:
    """The root mean square difference of the second heads over its spread in the reference, by hand."""
    with torch.no_grad():
        ours, theirs = ([*model.eval()(INPUTS)][1] for model in (student, reference))
    return float((ours - theirs).square().mean().sqrt() / (theirs - theirs.mean()).square().mean().sqrt())


# How far a head drifts follows from the course: it is said here.
STAGES = [
    FineTune(epochs=6, optimizer=AdamW(rate=0.01), schedule=OneCycle(warm_up=0.3)),
    Distill(epochs=6, optimizer=AdamW(rate=0.01), schedule=OneCycle(warm_up=0.3), views=1),
    SparseTraining(epochs=6, optimizer=AdamW(rate=0.01)),
]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: type(stage).__name__)
def test_a_second_head_survives_the_recovery_of_the_first(
    stage: Any, two_heads: TwoHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its output comes closer to the reference's than it was; without being held it drifts several times as far."""
    workload, context = workload_of(two_heads), Context(progress=False)
    held = pruned(two_heads)
    before = far(held, two_heads)
    stage.apply(held, workload, context)
    (told,) = context.details["other_outputs"]
    assert told["output"] == "1"
    assert told["treated"] == "held where the reference has it"
    assert told["before"] == pytest.approx(before, rel=1e-3)
    assert told["after"] == pytest.approx(far(held, two_heads), rel=1e-3)
    monkeypatch.setattr(Others, "loss", lambda *_: 0.0)
    drifted = pruned(two_heads)
    stage.apply(drifted, workload, Context(progress=False))
    assert told["after"] < 0.4 * far(drifted, two_heads)
    if not isinstance(stage, SparseTraining):
        assert told["after"] < before


def test_a_second_head_that_a_high_rate_destroys_is_told_in_words(two_heads: TwoHeads) -> None:
    """The classes come back at a rate that the held head does not survive; what part is lost, by hand."""
    student, context = pruned(two_heads), Context(progress=False)
    before = far(student, two_heads)
    FineTune(epochs=4, optimizer=AdamW(rate=1.0)).apply(student, workload_of(two_heads), context)
    (told,) = context.details["other_outputs"]
    lost = far(student, two_heads) ** 2 - before**2
    assert lost > 0.2
    share = "all" if lost > 1 else f"{lost:.0%}"
    assert told["says"].startswith(f"this training lost {share} of what it says: the rate is too high for it; ")


def test_a_head_that_stays_and_one_that_its_own_loss_moves_are_not_told_as_lost(two_heads: TwoHeads) -> None:
    """At a fitting rate nothing is said, nor where a loss of one's own asks for something else."""
    context = Context(progress=False)
    FineTune(epochs=2, optimizer=AdamW(rate=0.003)).apply(pruned(two_heads), workload_of(two_heads), context)
    assert "says" not in context.details["other_outputs"][0]
    own = workload_of(two_heads, others={"1": OtherOutput(loss=lambda outputs, _: (outputs - 9).square().mean())})
    student, context = copy.deepcopy(two_heads), Context(progress=False)
    FineTune(epochs=6, optimizer=AdamW(rate=0.03)).apply(student, own, context)
    assert far(student, two_heads) > 1
    assert "says" not in context.details["other_outputs"][0]


@pytest.mark.parametrize("name", FORMS)
def test_outputs_in_whatever_form(name: str) -> None:
    """Tuples, lists, dicts, dataclasses and what lies deeper: the second output is found by its name and held."""
    form, output = FORMS[name]
    torch.manual_seed(0)
    model = TwoHeads(form)
    others = Others.of(pruned(model), workload_of(model), precision=Float32(), seed=0)
    assert others.held == (output,)
    assert relative_changes(pruned(model), workload_of(model), others.held)[output] > 0.01


def test_an_output_with_a_loss_of_its_own_is_trained(two_heads: TwoHeads) -> None:
    """Named with a loss, the second head learns what the targets say, here their class as a number."""

    def grade(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs[:, 0], targets.float())

    workload, context = workload_of(two_heads, others={"1": OtherOutput(loss=grade)}), Context(progress=False)
    student = copy.deepcopy(two_heads)
    FineTune(epochs=10, optimizer=AdamW(rate=0.01)).apply(student, workload, context)
    assert context.details["other_outputs"][0]["treated"] == "trained by its own loss"
    with torch.no_grad():
        after, before = (grade(model(INPUTS)[1], TARGETS) for model in (student, two_heads))
    assert after < 0.5 * before


def test_targets_by_name_go_to_their_outputs(two_heads: TwoHeads) -> None:
    """With a dict of targets each loss is given its own entry, with its weight."""
    workload = workload_of(two_heads, others={"1": OtherOutput(loss=F.mse_loss, weight=3.0)})
    others = Others.of(two_heads, workload, precision=Float32(), seed=0)
    raw = two_heads(INPUTS[:4])
    targets = {"1": torch.ones(4, 2), "classes": TARGETS[:4]}
    found = others.loss(raw, INPUTS[:4], targets, None)  # type: ignore[arg-type]  # no teacher asks for the position
    assert float(found.detach()) == pytest.approx(3 * F.mse_loss(raw[1], torch.ones(4, 2)).item())


def test_the_distance_is_a_fraction_of_the_spread_or_that_of_its_kind(two_heads: TwoHeads) -> None:
    """Outputs 10 times as large are as far apart; an output of classes is compared as classes."""
    teacher = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    student = teacher + torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    others = Others.of(two_heads, workload_of(two_heads), precision=Float32(), seed=0)
    # Squared differences of 1/2 on average over a variance of 3.5.
    for scale in (1.0, 10.0):
        assert float(others._distance("1", scale * student, scale * teacher)) == pytest.approx(0.5 / 3.5)
    constant = torch.full((2, 2), 2.0)
    assert float(others._distance("1", constant + 1, constant)) == pytest.approx(1 / 4)
    named = workload_of(two_heads, others={"1": OtherOutput(kind=Classes())})
    others = Others.of(two_heads, named, precision=Float32(), seed=0)
    expected = Classes().distance(student, teacher, temperature=1.0)
    assert float(others._distance("1", student, teacher)) == pytest.approx(float(expected))


class Several(nn.Module):
    """Logits; probabilities made of them; a constant; whole numbers; a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 3), nn.Linear(10, 2)
        self.register_buffer("anchors", torch.arange(3.0))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        logits = self.first(x)
        return {
            "logits": logits,
            "shares": logits.softmax(dim=1),
            "anchors": self.anchors + 0 * x[:, :3],
            "answers": logits.argmax(dim=1),
            "second": self.second(x),
        }


def test_what_follows_from_the_judged_output_or_from_no_weight_is_left_alone() -> None:
    """Only the second head is held: nothing else could be lost."""
    torch.manual_seed(0)
    model = Several()
    others = Others.of(copy.deepcopy(model), workload_of(model), precision=Float32(), seed=0)
    assert others.held == ("second",)
    assert others.left == {"anchors": "it depends on no weight"}


def test_another_teacher_without_the_output_leaves_it_to_the_reference(two_heads: TwoHeads) -> None:
    """A teacher of one head teaches the classes; the second head is held where the reference has it."""
    context = Context(progress=False)
    teacher = nn.Sequential(nn.Linear(10, 3))
    student = pruned(two_heads)
    before = far(student, two_heads)
    Distill(epochs=6, optimizer=AdamW(rate=0.01), teacher=teacher, views=1).apply(
        student, workload_of(two_heads), context
    )
    assert far(student, two_heads) < before
    assert context.details["other_outputs"][0]["treated"] == "held where the reference has it"


def test_a_model_of_one_output_is_trained_as_before() -> None:
    """No reference is asked, and nothing is told."""
    torch.manual_seed(0)
    model, context = nn.Sequential(nn.Linear(10, 3)), Context(progress=False)
    FineTune(epochs=1).apply(copy.deepcopy(model), workload_of(model), context)
    assert "other_outputs" not in context.details


def test_remembered_answers_hold_the_other_outputs_too(two_heads: TwoHeads) -> None:
    """Replayed batches are answered from memory, the second head's outputs among them: to the same bits."""
    stage = Distill(epochs=3, tail_epochs=0, views=1, optimizer=AdamW(rate=0.01))
    workload = workload_of(two_heads)
    one, two = pruned(two_heads), pruned(two_heads)
    context = Context(progress=False)
    stage.apply(one, workload, context)
    assert context.details["teacher_cache"].startswith("16 of 24 batches")
    replace(stage, views=3).apply(two, workload, Context(progress=False))
    assert far(one, two_heads) < far(pruned(two_heads), two_heads)


def test_metric_and_loss_of_the_judged_output_stay(two_heads: TwoHeads) -> None:
    """What is judged is the first output, whatever is held beside it."""
    workload = workload_of(two_heads, metric=Metric.accuracy())
    student = pruned(two_heads)
    FineTune(epochs=8, optimizer=AdamW(rate=0.02)).apply(student, workload, Context(progress=False))
    with torch.no_grad():
        hits = (student(INPUTS)[0].argmax(dim=1) == TARGETS).double().mean()
    assert hits > 0.8


@pytest.mark.parametrize(
    ("name", "message"),
    [("2", r"'2', which is none of its outputs; .* gives '1'"), ("0", r"'0', which is the judged one.*`loss`")],
)
def test_names_of_no_further_output_are_refused_before_work(name: str, message: str, two_heads: TwoHeads) -> None:
    """An output that is not there, and the judged one, which has the workload's loss."""
    with pytest.raises(WorkloadError, match=message):
        check_workload(workload_of(two_heads, others={name: OtherOutput(loss=F.mse_loss)}))
    check_workload(workload_of(two_heads, others={"1": OtherOutput(loss=lambda o, _: o.square().mean())}))


@pytest.mark.parametrize(
    "stage",
    [
        PruneChannels(remove=0.25, schedule=Linear(steps=2, epochs=1), align=1),
        SparsifyWeights(sparsity=0.5, schedule=Linear(steps=2, epochs=1)),
        SparsifyWeights(sparsity=0.5, schedule=Polynomial(epochs=1)),
    ],
)
def test_trainings_inside_other_stages_hold_the_second_head(stage: Any, two_heads: TwoHeads) -> None:
    """Those between the steps of a schedule, and those during which zeros grow in number."""
    context = Context(progress=False)
    stage.apply(copy.deepcopy(two_heads), workload_of(two_heads), context)
    assert context.details["other_outputs"][0]["treated"] == "held where the reference has it"
