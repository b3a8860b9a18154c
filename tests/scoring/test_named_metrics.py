"""Every named metric gives scikit-learn's number, or one that was computed by hand, whatever the batches."""

import re
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score, log_loss, r2_score, roc_auc_score
from torch.nn import functional as F

from compressor.errors import WorkloadError
from compressor.intervals import paired_drop, score_estimate
from compressor.metrics import Metric
from compressor.outputs.kinds import Classes

N = 90


def in_batches(metric, outputs, targets):
    """The score of rows that were made in uneven batches, as a run makes them."""
    sizes = [7, 40, N - 47]
    pairs = zip(outputs.split(sizes), targets.split(sizes), strict=True)
    return metric.aggregate(torch.cat([metric.rows(*pair) for pair in pairs]))


def classes(count=4):
    return torch.randn(N, count), torch.randint(0, count, (N,))


def labels(count=5):
    return torch.randn(N, count), (torch.rand(N, count) < 0.3).float()


def numbers():
    return torch.randn(N, 2), torch.randn(N, 2)


def test_auroc_of_two_classes_is_scikit_learns():
    """By the difference of two logits, ties among them."""
    outputs, targets = classes(2)
    outputs = outputs.round()
    expected = roc_auc_score(targets, outputs[:, 1] - outputs[:, 0])
    assert in_batches(Metric.auroc(), outputs, targets) == pytest.approx(expected)


def test_auroc_of_many_classes_is_one_against_all_others():
    """scikit-learn's ovr, by probabilities; the same for a model that ends in Softmax."""
    outputs, targets = classes(4)
    expected = roc_auc_score(targets, outputs.double().softmax(1), multi_class="ovr")
    assert in_batches(Metric.auroc(), outputs, targets) == pytest.approx(expected)
    assert in_batches(Metric.auroc(), outputs.softmax(1), targets) == pytest.approx(expected, abs=1e-6)


def test_auroc_of_labels_is_the_mean_over_labels():
    """With missing labels left out, label by label."""
    outputs, targets = labels()
    assert in_batches(Metric.auroc(), outputs, targets) == pytest.approx(roc_auc_score(targets, outputs))
    targets[:20, 0] = -100
    expected = np.mean([roc_auc_score(targets[20 * (k == 0) :, k], outputs[20 * (k == 0) :, k]) for k in range(5)])
    assert in_batches(Metric.auroc(), outputs, targets) == pytest.approx(expected)


def test_auroc_by_hand():
    """Of two true and two false samples three pairs of four stand in order: 0.75. One class alone has none."""
    outputs = torch.tensor([0.1, 0.4, 0.35, 0.8])
    assert Metric.auroc().score(outputs, torch.tensor([0.0, 0.0, 1.0, 1.0])) == 0.75
    assert np.isnan(Metric.auroc().score(outputs, torch.ones(4)))


def test_multilabel_f1_is_scikit_learns():
    """The mean over labels; one that is neither true nor answered is left out."""
    outputs, targets = labels()
    expected = f1_score(targets, outputs > 0, average="macro")
    assert in_batches(Metric.multilabel_f1(), outputs, targets) == pytest.approx(expected)
    silent = torch.cat([outputs, -torch.ones(N, 1)], 1), torch.cat([targets, torch.zeros(N, 1)], 1)
    assert in_batches(Metric.multilabel_f1(), *silent) == pytest.approx(expected)


def test_multilabel_accuracy_counts_labels():
    """The part of all labels that is told rightly."""
    outputs, targets = labels()
    expected = ((outputs > 0) == (targets == 1)).double().mean()
    assert in_batches(Metric.named("multilabel_accuracy"), outputs, targets) == pytest.approx(float(expected))


@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 3)])
def test_r2_is_scikit_learns(shape):
    """Of one number and of several, the mean over them; a number that never changes is left out."""
    outputs, targets = torch.randn(shape), torch.randn(shape)
    expected = r2_score(targets, outputs)
    assert in_batches(Metric.r2(), outputs, targets) == pytest.approx(expected)
    if len(shape) > 1:
        more = torch.cat([outputs, torch.randn(N, 1)], 1), torch.cat([targets, torch.ones(N, 1)], 1)
        assert in_batches(Metric.r2(), *more) == pytest.approx(expected)


def test_f1_of_positions_is_scikit_learns():
    """Of every token or pixel, wherever the classes lie, in batches of two lengths; label -100 left out."""
    outputs, targets = torch.randn(N, 5, 3), torch.randint(0, 3, (N, 5))
    targets[:, 4] = -100
    counted = targets.flatten() >= 0
    expected = f1_score(targets.flatten()[counted], outputs.argmax(-1).flatten()[counted], average="macro")
    metric = Metric.macro_f1()
    assert in_batches(metric, outputs, targets) == pytest.approx(expected)
    assert in_batches(metric, outputs.movedim(-1, 1), targets) == pytest.approx(expected)
    short = [metric.rows(outputs[:40, :4], targets[:40, :4]), metric.rows(outputs[40:], targets[40:])]
    assert metric.aggregate(metric.together(short)) == pytest.approx(expected)


def test_miou_is_scikit_learns_over_pixels():
    """Of five classes, one that never occurs and label 255 left out."""
    outputs, targets = torch.randn(N, 5, 4, 3), torch.randint(0, 4, (N, 4, 3))
    outputs[:, 4] = -9
    answers = outputs.argmax(1)
    expected = jaccard_score(targets.flatten(), answers.flatten(), average="macro")
    assert in_batches(Metric.miou(), outputs, targets) == pytest.approx(expected)
    targets[:, 0] = 255
    asked = targets != 255
    expected = jaccard_score(targets[asked], answers[asked], average="macro")
    assert in_batches(Metric.miou(ignored=(255,)), outputs, targets) == pytest.approx(expected)


def test_miou_by_hand():
    """Answers 0 0 1 1 against 0 1 1 1: classes overlap in 1 of 2 and 2 of 3 pixels."""
    outputs = F.one_hot(torch.tensor([[[0, 0], [1, 1]]]), 2).movedim(3, 1).float()
    assert Metric.miou().score(outputs, torch.tensor([[[0, 1], [1, 1]]])) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_perplexity_is_the_exponential_of_the_log_loss():
    """Over all tokens; ignored ones do not count; labels may stand one ahead; probabilities are taken as such."""
    outputs, targets = torch.randn(N, 6, 5), torch.randint(0, 5, (N, 6))
    expected = np.exp(log_loss(targets.flatten(), outputs.double().softmax(-1).flatten(0, 1)))
    assert in_batches(Metric.perplexity(), outputs, targets) == pytest.approx(expected)
    ready = Metric.perplexity().settled(Classes(axis=-1, probabilities=True))
    assert in_batches(ready, outputs.softmax(-1), targets) == pytest.approx(expected, rel=1e-5)
    ahead = np.exp(float(F.cross_entropy(outputs[:, :-1].reshape(-1, 5).double(), targets[:, 1:].flatten())))
    assert in_batches(Metric.perplexity(shift=1), outputs, targets) == pytest.approx(ahead)
    targets[:, 3] = -100
    left = np.exp(float(F.cross_entropy(outputs.reshape(-1, 5).double(), targets.flatten())))
    assert in_batches(Metric.perplexity(), outputs, targets) == pytest.approx(left)


CASES = {
    "accuracy": classes,
    "f1": classes,
    "macro_f1": classes,
    "auroc": classes,
    "top-2": classes,
    "multilabel_f1": labels,
    "multilabel_accuracy": labels,
    "label_accuracy": labels,
    "r2": numbers,
    "mse": numbers,
    "mae": numbers,
    "miou": lambda: (torch.randn(N, 3, 2, 2), torch.randint(0, 3, (N, 2, 2))),
    "pixel_accuracy": lambda: (torch.randn(N, 3, 2, 2), torch.randint(0, 3, (N, 2, 2))),
    "perplexity": lambda: (torch.randn(N, 4, 3), torch.randint(0, 3, (N, 4))),
    "token_accuracy": lambda: (torch.randn(N, 4, 3), torch.randint(0, 3, (N, 4))),
}
# Boxes, and agreement with a reference's own outputs.
ELSEWHERE = {"map", "map50", "agreement", "relative"}


def test_no_name_is_left_out():
    """What follows holds for every metric that has a name; four have tests of their own."""
    with pytest.raises(ValueError, match="metric must be one of") as told:
        Metric.named("")
    names = re.match(r"metric must be one of (.*?) or top<k>", str(told.value))[1].split(", ")
    assert {*names, "top-2"} == CASES.keys() | ELSEWHERE


@pytest.mark.parametrize("name", CASES)
def test_each_has_an_interval_and_a_paired_drop(name):
    """The interval holds the score; a model against itself drops by nothing; a worse one drops, its interval too."""
    metric = Metric.named(name)
    outputs, targets = CASES[name]()
    if targets.is_floating_point():
        good = outputs + 3 * (2 * targets - 1) if set(targets.unique().tolist()) <= {0, 1} else targets + 0.1 * outputs
    else:
        maps = name in {"miou", "pixel_accuracy"}
        good = F.one_hot(targets, outputs.shape[1 if maps else -1]).float()
        good = outputs + 4 * (good.movedim(-1, 1) if maps else good)
    rows, better = metric.rows(outputs, targets), metric.rows(good, targets)
    estimate = score_estimate(rows, metric)
    assert estimate.low < estimate.value < estimate.high
    same = paired_drop(rows, rows, metric)
    assert (same.low, same.value, same.high) == (0, 0, 0)
    drop = paired_drop(rows, better, metric)
    assert 0 < drop.low < drop.value < drop.high


@pytest.mark.parametrize("name", CASES)
def test_each_has_a_loss_that_trains(name):
    """The usual loss of every metric takes its outputs and targets, and has a gradient."""
    outputs, targets = CASES[name]()
    outputs.requires_grad_()
    Metric.named(name).usual_loss()(outputs, targets).backward()
    assert outputs.grad.abs().sum() > 0


def test_names_are_found_in_the_usual_spellings():
    """top5, top-5 and top_5 are one; what is misspelt gets the nearest name."""
    assert {Metric.named(name).name for name in ("top5", "top-5", "top_5", "top5_accuracy")} == {"top5"}
    with pytest.raises(ValueError, match=r"got 'mlou'; did you mean 'miou'\?"):
        Metric.named("mlou")


def test_shapes_that_do_not_fit_are_refused():
    """Outputs (N, 1) against targets (N,) would broadcast."""
    for metric in (Metric.r2(), Metric.multilabel_f1(), Metric.auroc()):
        with pytest.raises(WorkloadError, match=r"use targets.unsqueeze\(1\)"), warnings.catch_warnings():
            metric.rows(torch.randn(4, 1), torch.ones(4))
