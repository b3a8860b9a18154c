"""Metrics give the numbers that one gets by hand, sample by sample."""

import pytest
import torch
from sklearn.metrics import f1_score

from compressor.metrics import Metric

LOGITS = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 0.0, 2.0], [5.0, 4.0, 0.0]])


def test_accuracy_counts_hits():
    """Predictions 0, 1, 2, 0 against 0, 1, 1, 1: two of four."""
    metric = Metric.accuracy()
    targets = torch.tensor([0, 1, 1, 1])
    assert metric.per_sample(LOGITS, targets).tolist() == [1, 1, 0, 0]
    assert metric.score(LOGITS, targets) == 0.5


def test_accuracy_of_tokens_is_each_samples_mean():
    """With (batch, classes, positions) outputs a sample of 2 positions with one hit scores 0.5."""
    outputs = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # predicts 0, then 1
    assert Metric.accuracy().per_sample(outputs, torch.tensor([[0, 0]])).tolist() == [0.5]


def test_top_two_accepts_the_second_answer():
    """The targets are first, second, third and second best."""
    assert Metric.named("top2").per_sample(LOGITS, torch.tensor([0, 2, 1, 1])).tolist() == [1, 1, 0, 1]


def test_macro_f1_equals_scikit_learn():
    """On random predictions of five classes, one of them never seen, both give the same number."""
    outputs, targets = torch.randn(200, 5), torch.randint(0, 4, (200,))
    expected = f1_score(targets, outputs.argmax(dim=1), average="macro")
    assert Metric.macro_f1().score(outputs, targets) == pytest.approx(expected)


def test_errors_are_means_per_sample():
    """Differences of 1 and 3 in one sample: mse 5, mae 2."""
    outputs, targets = torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2)
    assert Metric.mse().score(outputs, targets) == 5
    assert Metric.mae().score(outputs, targets) == 2


def test_drop_follows_direction_and_scale():
    """Accuracy from 0.9 to 0.85 is 0.05 points worse; an error from 2 to 3 is half the reference worse."""
    assert Metric.accuracy().drop(0.9, 0.85) == pytest.approx(0.05)
    assert Metric.mse().drop(2.0, 3.0) == pytest.approx(0.5)


def test_unknown_names_are_refused_with_what_there_is():
    """The message lists the metrics and the way to one's own."""
    with pytest.raises(ValueError, match=r"accuracy, macro_f1, mse, mae or top<k>.*got 'acuracy'"):
        Metric.named("acuracy")
