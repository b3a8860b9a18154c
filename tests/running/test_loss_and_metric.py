"""Losses and metrics that compare outputs with other samples' targets are refused before any work, and only those."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.errors import WorkloadError
from compressor.given.notices import WorkloadWarning
from compressor.metrics import Metric
from compressor.running.broadcasts import Crossing, crossing, forgets_the_order
from compressor.running.loss_and_metric import check_judged
from compressor.workload import Workload

N = 8


def column(count: int = N) -> Tensor:
    return torch.randn(count, 1)


def row(count: int = N) -> Tensor:
    return torch.randn(count)


def workload(loss: Callable[..., Any], metric: Metric | None = None) -> Workload:
    """A workload of which only loss and metric are looked at."""
    blind = Metric(name="blind", per_sample=lambda outputs, _: torch.zeros(len(outputs)), bounded=False)
    return Workload(
        name="judged",
        model=nn.Identity(),
        example_inputs=column(),
        train=[],
        calibration=[],
        validation=[],
        test=[],
        loss=loss,
        metric=metric or blind,
    )


def refusal(loss: Callable[..., Any], outputs: Tensor, targets: Tensor, metric: Metric | None = None) -> str:
    """Why the pair is refused on the first batch of train."""
    with pytest.raises(WorkloadError) as caught:
        check_judged("train", outputs, targets, workload(loss, metric))
    return str(caught.value)


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


@pytest.mark.parametrize(
    ("outputs", "targets", "way_out"),
    [
        ((N, 1), (N,), "use targets.unsqueeze(1), or let the model give output.squeeze(1)"),
        ((N,), (N, 1), "use targets.squeeze(1), or let the model give output.unsqueeze(1)"),
        ((N, 1, 1), (N,), "use targets.reshape(-1, 1, 1)"),
        ((N, 1, 4, 4), (N, 4, 4), "use targets.unsqueeze(1), or let the model give output.squeeze(1)"),
        ((N, 3, 1), (N, 3), "use targets.unsqueeze(2), or let the model give output.squeeze(2)"),
        ((N, 3), (N,), "give one target for each number that the model gives"),
    ],
)
@pytest.mark.parametrize("metric", [Metric.mse(), Metric.mae()])
def test_errors_of_two_shapes_are_refused_with_both(
    metric: Metric, outputs: tuple[int, ...], targets: tuple[int, ...], way_out: str
) -> None:
    """Both mse and mae name both shapes and how to make them one, whether or not they would broadcast."""
    with pytest.raises(WorkloadError) as caught:
        metric.score(torch.randn(outputs), torch.randn(targets))
    assert f"got outputs {outputs} and targets {targets}; {way_out}" in str(caught.value)


@pytest.mark.parametrize("metric", [Metric.accuracy(), Metric.top_k(2), Metric.macro_f1()])
def test_class_indices_in_a_column_are_refused(metric: Metric) -> None:
    """Labels (N, 1) would be compared with the answers of all samples."""
    with pytest.raises(WorkloadError, match=r"outputs \(8, 3\) and targets \(8, 1\); use targets.squeeze\(1\)$"):
        metric.score(torch.randn(N, 3), torch.zeros(N, 1, dtype=torch.long))


def test_one_number_a_sample_is_judged() -> None:
    """Outputs (N,) against targets (N,): differences of 1 and 3 give mse 5, mae 2."""
    outputs, targets = torch.tensor([1.0, 3.0]), torch.zeros(2)
    assert Metric.mse().score(outputs, targets) == 5
    assert Metric.mae().per_sample(outputs, targets).tolist() == [1, 3]
    check_judged("train", row(), row(), workload(F.mse_loss, Metric.mse()))
    check_judged("train", column(), column(), workload(squared, Metric.mae()))


@pytest.mark.parametrize(
    "loss",
    [
        F.mse_loss,
        F.l1_loss,
        F.smooth_l1_loss,
        F.huber_loss,
        F.poisson_nll_loss,
        lambda outputs, targets: squared(*torch.broadcast_tensors(outputs, targets)),
        squared,
        lambda outputs, targets: torch.where(targets > 0, outputs, -outputs).mean(),
        lambda outputs, targets: (outputs.sigmoid() - targets.clamp(0, 1)).abs().mean(),
        lambda outputs, targets: squared(outputs, targets) + outputs.square().mean(),
    ],
)
@pytest.mark.parametrize("shapes", [((N, 1), (N,)), ((N,), (N, 1)), ((N, 1, 2, 2), (N, 2, 2))])
def test_losses_that_broadcast_are_refused(loss: Callable[..., Any], shapes: Any) -> None:
    """Losses of torch, which only warn, and those of one's own: the shapes and the way out are named."""
    outputs, targets = map(torch.randn, shapes)
    message = refusal(loss, outputs, targets)
    assert message.startswith("the loss, on the first batch of train with outputs float32")
    assert "compares every output with every target" in message
    assert "queeze(1), or let the model give output." in message


def test_a_shape_changed_on_the_way_is_seen_by_the_value() -> None:
    """Targets flattened inside the loss meet a column of outputs: no target's place matters, which gives it away."""
    message = refusal(lambda outputs, targets: squared(outputs, targets.view(-1)), column(), column())
    assert "compares every output with every target" in message
    assert "give both the same shape before they are compared" in message


@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [
        (lambda o, t: squared(o, t.unsqueeze(1)), column(), row()),
        (lambda o, t: squared(o, t.view(-1, 1)), column(), row()),
        (lambda o, t: squared(o.squeeze(1), t), column(), row()),
        (lambda o, t: F.cross_entropy(o @ o.T, torch.arange(len(t))), torch.randn(N, 5), row()),  # contrastive
        (lambda o, t: (torch.relu(1 - (o - o.T)) * (t[:, None] > t[None])).mean(), column(), row()),  # ranking
        (lambda o, t: ((t[:, None] == t[None]) * (o @ o.T)).mean(), torch.randn(N, 5), torch.arange(N) % 2),
        (lambda o, t: ((o @ o.T) * t).mean(), torch.randn(N, 5), row()),  # a weight for each column
        (lambda o, t: (torch.cdist(o, o)[t[:, None] > t[None]]).mean(), torch.randn(N, 5), row()),  # triplets
        (lambda o, t: (torch.ones(3)[t] * F.cross_entropy(o, t, reduction="none")).mean(), torch.randn(N, 3),
         torch.arange(N) % 3),
        (lambda o, t: -(o - ((t[None] >= t[:, None]) * o.exp().T).sum(1, keepdim=True).log()).mean(), column(), row()),
        (lambda o, t: o.mean() + t.mean(), column(), row()),
        (lambda o, t: (o - t).abs().mean(), torch.randn(N, 3), column()),  # each sample's own target for all outputs
    ],
)  # fmt: skip
def test_pairs_that_are_meant_are_no_mistake(loss: Callable[..., Any], outputs: Tensor, targets: Tensor) -> None:
    """Contrastive, ranking, survival and weighted losses build matrices of samples on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_judged("train", outputs, targets, workload(loss))


def test_a_deliberate_matrix_that_looks_like_a_mistake_is_warned_of() -> None:
    """Outputs (N,) minus targets viewed as (N, 1): a dimension was put in, so it may be meant."""
    with pytest.warns(WorkloadWarning, match="compares every output with every target"):
        check_judged("train", row(), row(), workload(lambda o, t: squared(o, t.view(-1, 1))))


def test_other_warnings_of_a_loss_are_passed_on() -> None:
    """What a loss warns of, and the broadcast of a term that is not outputs against targets, reaches the caller."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        warnings.warn("mine", UserWarning, stacklevel=1)
        return F.mse_loss(outputs, targets) + F.mse_loss(outputs, outputs.mean())

    with pytest.warns(UserWarning, match="Using a target size"), pytest.warns(UserWarning, match="mine"):
        check_judged("train", row(), row(), workload(loss))


def test_a_loss_is_one_number() -> None:
    """One value a sample is refused with the mean as the way out; one value in a vector of length 1 is fine."""
    message = refusal(lambda o, t: (o - t).square(), row(), row())
    assert "must be one number, got shape (8,); give the mean over samples" in message
    check_judged("train", row(), row(), workload(lambda o, t: (o - t).square().mean().reshape(1)))


def test_a_loss_that_refuses_two_shapes_is_shown_the_way() -> None:
    """Binary cross-entropy raises for (N, 1) and (N,): the refusal adds what to do."""
    message = refusal(F.binary_cross_entropy_with_logits, column(), torch.rand(N))
    assert "ValueError: Target size (torch.Size([8])) must be the same as input size" in message
    assert message.endswith("use targets.unsqueeze(1), or let the model give output.squeeze(1)")


def test_an_error_that_shapes_do_not_mend_is_shown_no_shapes() -> None:
    """A metric that fails whatever the shapes are is not told to change them."""
    metric = Metric(name="own", per_sample=lambda *_: {}["gone"], bounded=False)
    told = refusal(lambda o, t: squared(o.squeeze(1), t), column(), row(), metric)
    assert "KeyError: 'gone'" in told
    assert "squeeze" not in told


def test_a_score_is_a_number_and_no_text() -> None:
    """A formatted score would pass as a number here and fail where it is compared."""
    metric = Metric(
        name="own",
        per_sample=lambda o, _: o.squeeze(1),
        aggregate=lambda rows: f"{float(rows.mean()):.2f}",
        bounded=False,
    )
    told = refusal(lambda o, t: squared(o.squeeze(1), t), column(), row(), metric)
    assert "must be a number, got the text '" in told


@pytest.mark.parametrize(
    ("per_sample", "message"),
    [
        (lambda o, t: (o - t).abs(), "compares every output with every target"),
        (lambda o, t: (o - t).abs().mean(1), "compares every output with every target"),
        (lambda o, t: abs(o.numpy() - t.numpy()), "gives rows of 8 numbers for 8 samples and of 4 numbers for 4"),
        (lambda o, t: abs(o.numpy() - t.numpy()).mean(axis=1), "compares every output with every target"),
        (F.l1_loss, "must give one row a sample, (8,) or (8, k), and gives ()"),
        (lambda o, t: (o[:, 0] - t).abs().mean(), "must give one row a sample, (8,) or (8, k), and gives ()"),
    ],
)
def test_metrics_of_ones_own_are_checked_alike(per_sample: Callable[..., Any], message: str) -> None:
    """Rows of tensors and of arrays: a row that depends on other samples' targets is found by half a batch."""
    metric = Metric(name="own", per_sample=per_sample, bounded=False)
    told = refusal(lambda o, t: squared(o.squeeze(1), t), column(), row(), metric)
    assert told.startswith("the metric own, on the first batch of train")
    assert message in told


@pytest.mark.parametrize(
    "per_sample",
    [
        lambda o, t: (o[:, 0] - t).abs(),
        lambda o, t: abs(o.numpy()[:, 0] - t.numpy()),
        lambda o, t: torch.stack([o[:, 0], t], dim=1),
        lambda o, t: (o @ o.T).softmax(1).diagonal(),  # depends on the batch, and not by its targets
    ],
)
def test_metrics_of_ones_own_are_let_be(per_sample: Callable[..., Any]) -> None:
    """Arrays become rows, and outputs (N, 1) against targets (N,) are no fault where the metric matches them."""
    metric = Metric(name="own", per_sample=per_sample, bounded=False, aggregate=lambda rows: float(rows.sum()))
    if "diagonal" in per_sample.__code__.co_names:
        outputs, targets = torch.randn(N, 5), row()
    else:
        outputs, targets = column(), row()
    check_judged("train", outputs, targets, workload(lambda o, t: o.mean() + t.mean(), metric))


def test_targets_that_are_all_the_same_decide_nothing() -> None:
    """Without different targets the value says nothing of their order."""
    assert not forgets_the_order(lambda o, t: float(squared(o, t)), column(), torch.ones(N))
    assert forgets_the_order(lambda o, t: float(squared(o, t)), column(), row())
    assert crossing(squared, column(), torch.ones(N)) is Crossing.ACCIDENT
    assert "compares every output" in refusal(squared, column(), torch.ones(N))


def test_a_workload_of_a_column_and_a_row_is_refused_before_any_work() -> None:
    """The usual regression network with the usual targets: refused by the check that every run begins with."""
    from compressor.running.preflight import check_workload

    inputs = torch.randn(40, 3)
    data = (inputs, inputs[:, 0])
    model = nn.Linear(3, 1)
    wrong = Workload.from_datasets(model, train=data, test=data, metric="mse", batch_size=8)
    with pytest.raises(WorkloadError, match=r"first batch of train.*targets.unsqueeze\(1\)"):
        check_workload(wrong)
    squeezed = nn.Sequential(model, nn.Flatten(0))
    check_workload(dataclasses.replace(wrong, model=squeezed))
