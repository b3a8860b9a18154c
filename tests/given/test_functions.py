"""Plain functions as metric and loss: what they score is what they say, whichever way they say it."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, r2_score
from torch import nn
from torch.nn import functional as F

from compressor.errors import WorkloadError
from compressor.given.functions import metric_of, packed, unpacked
from compressor.given.notices import WorkloadWarning
from compressor.intervals import paired_drop, score_estimate
from compressor.running.preflight import check_workload
from compressor.workload import Workload

OUTPUTS, LABELS = torch.randn(60, 3), torch.arange(60) % 3
NUMBERS, TRUTH = torch.randn(60, 1), torch.randn(60, 1)


def metric(function, outputs=OUTPUTS, targets=LABELS, higher=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WorkloadWarning)
        return metric_of(function, outputs, targets, higher)


def hits(outputs, targets):
    return (outputs.argmax(1) == targets).float()


def share(outputs, targets):
    return float(hits(outputs, targets).mean())


def rmse(outputs, targets):
    return (outputs - targets).square().mean().sqrt()


def test_rows_and_one_number_give_the_same_score():
    """The mean of rows, and a number of all samples, which both are an accuracy."""
    expected = share(OUTPUTS, LABELS)
    assert metric(hits).score(OUTPUTS, LABELS) == pytest.approx(expected)
    assert metric(share).score(OUTPUTS, LABELS) == pytest.approx(expected)


def test_one_number_is_of_all_samples_not_of_batches():
    """Root mean square errors of two batches do not average to that of both: that of both is scored."""
    found = metric(rmse, NUMBERS, TRUTH)
    rows = torch.cat([found.rows(NUMBERS[:10], TRUTH[:10]), found.rows(NUMBERS[10:], TRUTH[10:])])
    assert found.aggregate(rows) == pytest.approx(float(rmse(NUMBERS, TRUTH)))


def test_intervals_resample_the_samples():
    """A mean that is computed as a number of all has the interval of the same mean as rows."""
    one, other = (score_estimate(each.rows(OUTPUTS, LABELS), each) for each in (metric(hits), metric(share)))
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=0.03)
    same = metric(share)
    rows = same.rows(OUTPUTS, LABELS)
    drop = paired_drop(rows, rows, same)
    assert (drop.value, drop.low, drop.high) == (0, 0, 0)


def test_errors_are_better_the_lower():
    """The name says it, unless it is said."""
    assert not metric(rmse, NUMBERS, TRUTH).higher_is_better
    assert metric(rmse, NUMBERS, TRUTH, higher=True).higher_is_better
    assert metric(share).higher_is_better


def test_functions_of_truth_and_prediction_are_called_in_their_order():
    """r2_score(y_true, y_pred) of scikit-learn is not symmetric: the number is scikit-learn's."""
    with pytest.warns(WorkloadWarning, match=r"r2_score: one number.*called as \(targets, outputs\)"):
        found = metric_of(r2_score, NUMBERS, TRUTH, None)
    assert found.score(NUMBERS, TRUTH) == pytest.approx(r2_score(TRUTH, NUMBERS))
    assert r2_score(TRUTH, NUMBERS) != pytest.approx(r2_score(NUMBERS, TRUTH))


def test_objects_that_add_up_are_emptied():
    """As those of torchmetrics: called twice they would score both batches."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.total = 0.0

        def forward(self, outputs, targets):
            self.total += float(hits(outputs, targets).sum())
            return torch.tensor(self.total)

        def reset(self):
            self.total = 0.0

    found = metric(Sum())
    assert found.score(OUTPUTS, LABELS) == found.score(OUTPUTS, LABELS) == float(hits(OUTPUTS, LABELS).sum())


@pytest.mark.parametrize(
    ("outputs", "targets"), [(OUTPUTS, LABELS), (torch.randn(5, 2, 3), torch.randn(5, 2)), (NUMBERS[:, 0], TRUTH[:, 0])]
)
def test_packed_rows_give_back_what_they_hold(outputs, targets):
    """Shapes, types and values, in one matrix of float64."""
    rows = packed(outputs, targets)
    assert rows.shape[0] == len(outputs)
    first, second = unpacked(rows)
    assert torch.equal(first, outputs)
    assert torch.equal(second, targets)
    assert second.dtype == targets.dtype


def test_a_workload_takes_functions():
    """A function as metric, another as loss; without a loss targets tell which is usual."""
    data = (torch.randn(40, 3), torch.arange(40) % 3)
    with pytest.warns(WorkloadWarning, match="the metric is your function share"):
        workload = Workload.from_datasets(nn.Linear(3, 3), train=data, test=data, metric=share)
    assert workload.loss is F.cross_entropy
    assert check_workload(workload).metric.name == "share"
    own = partial(F.cross_entropy, label_smoothing=0.1)
    assert Workload.from_datasets(nn.Linear(3, 3), train=data, test=data, loss=own).loss is own


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda outputs, targets: None, "got None; return the number itself"),
        (lambda outputs, targets: {"f1": 1.0}, "got dict; return the number"),
        (lambda outputs, targets: "good", "got str"),
        (lambda outputs, targets: float("nan"), "must give a finite number"),
        (lambda outputs, targets: torch.ones(7), r"one row for each of the 60 samples, got the shape \(7,\)"),
        (lambda outputs: 1.0, r"must take \(outputs, targets\) and fails.*TypeError"),
        (accuracy_score, r"accuracy_score must take.*ValueError.*outputs.argmax\(1\)"),
    ],
)
def test_functions_that_score_nothing_are_refused(function, says):
    """With the shapes that they were given and what to return."""
    with pytest.raises(WorkloadError, match=says):
        metric(function)


@pytest.mark.filterwarnings("ignore::compressor.given.notices.WorkloadWarning")
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"loss": nn.CrossEntropyLoss},
            r"got the class CrossEntropyLoss; make an object of it: loss=CrossEntropyLoss\(\)",
        ),
        ({"loss": "cross_entropy"}, "got str 'cross_entropy'; give the function itself"),
        ({"metric": 5}, "metric must be a name such as 'accuracy'.*got int 5"),
        ({"metric": nn.MSELoss}, "got the class MSELoss; make an object of it"),
        ({"metric": lambda outputs, targets: np.float64(1), "model": nn.Linear(4, 3)}, "must take the first batch"),
        (
            {"metric": lambda outputs, targets: 1.0, "model": nn.Linear(3, 2, bias=False), "targets": "bools"},
            "loss must be given",
        ),
    ],
)
def test_wrong_losses_and_metrics_are_refused(given, says):
    """Classes in place of objects, names of losses, numbers."""
    given = dict(given)
    targets = torch.ones(40, 5) > 0 if given.pop("targets", "") else torch.arange(40) % 3
    data = (torch.randn(40, 3), targets)
    model = given.pop("model", nn.Linear(3, 3))
    with pytest.raises(WorkloadError, match=says):
        Workload.from_datasets(model, train=data, test=data, **given)


def test_a_workload_by_hand_takes_the_name_of_a_metric():
    """As the makers of workloads do."""
    sets = {name: [(OUTPUTS, LABELS)] for name in ("train", "calibration", "validation", "test")}
    workload = Workload(
        name="net",
        model=nn.Linear(3, 3),
        example_inputs=OUTPUTS[:2],
        loss=F.cross_entropy,
        metric="top2",
        **sets,
    )
    assert workload.metric.name == "top2"
