"""Metrics give the numbers that one gets by hand, sample by sample."""

import pytest
import torch
from sklearn.metrics import f1_score
from torch.nn import functional as F

from compressor.errors import WorkloadError
from compressor.intervals import paired_drop, score_estimate
from compressor.metrics import Metric
from compressor.outputs.kinds import Classes

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
    assert Metric.accuracy(axis=1).per_sample(outputs, torch.tensor([[0, 0]])).tolist() == [0.5]


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
    with pytest.raises(
        ValueError,
        match=r"accuracy, token_accuracy, .*, macro_f1, .*, mse, mae, agreement, relative or top<k>.*got 'acuracy'",
    ):
        Metric.named("acuracy")


TAGS = torch.tensor([[[5.0, 0.0, 0.0], [0.0, 5.0, 0.0]], [[0.0, 0.0, 5.0], [5.0, 0.0, 0.0]]])  # 0 1, and 2 0


def test_token_accuracy_counts_tokens_not_sentences():
    """Of the tokens 0 1 | 2 0 against 0 1 | 2 -100 all three that count are right; against 0 0 | -100 1 one of three.

    The mean over sentences of the second would be (1/2 + 0) / 2.
    """
    metric = Metric.token_accuracy()
    assert metric.score(TAGS, torch.tensor([[0, 1], [2, -100]])) == 1.0
    assert metric.score(TAGS, torch.tensor([[0, 0], [-100, 1]])) == pytest.approx(1 / 3)
    assert metric.rows(TAGS, torch.tensor([[0, 0], [-100, 1]])).tolist() == [[1, 2], [0, 1]]


def test_a_class_that_is_ignored_is_no_hit():
    """With the word 0 for padding, 0 1 | 2 0 against 0 1 | 1 0 is one of two: the zeros, all right, do not count."""
    metric = Metric.token_accuracy(ignored=(0,))
    assert metric.rows(TAGS, torch.tensor([[0, 1], [1, 0]])).tolist() == [[1, 1], [0, 1]]
    assert metric.score(TAGS, torch.tensor([[0, 1], [1, 0]])) == 0.5


def test_token_accuracy_of_a_language_model_looks_ahead():
    """The answers 0 and 2 to the first tokens are compared with the second labels, 1 and 2: one of two."""
    assert Metric.token_accuracy(shift=1).score(TAGS, torch.tensor([[0, 1], [0, 2]])) == 0.5


def test_pixel_accuracy_leaves_out_what_is_void():
    """A map of 2 x 2 pixels, classes in dimension 1, one of them void: two of the other three are right."""
    outputs = torch.zeros(1, 2, 2, 2)
    outputs[0, 1, 0] = 1.0  # the upper row is class 1
    targets = torch.tensor([[[1, 0], [0, 255]]])
    assert Metric.pixel_accuracy(ignored=(255,)).score(outputs, targets) == pytest.approx(2 / 3)


def test_accuracy_without_what_is_ignored():
    """Samples and tokens with the label -100 do not count: of hit, miss and ignored, the mean is 1/2."""
    metric = Metric.accuracy()
    assert metric.score(LOGITS[:3], torch.tensor([0, 2, -100])) == 0.5
    assert metric.score(TAGS, torch.tensor([[0, 0], [-100, -100]])) == 0.5
    assert Metric.top_k(2).score(LOGITS[:3], torch.tensor([1, 0, -100])) == 0.5
    assert Metric.macro_f1().score(LOGITS[:3], torch.tensor([0, 1, -100])) == 1.0


def test_intervals_leave_out_samples_of_which_nothing_was_asked():
    """Accuracy on 30 samples and 10 ignored ones has Wilson's interval for 30."""
    hits = torch.tensor([1.0, 0.0, 1.0]).repeat(10)
    asked = score_estimate(hits, Metric.accuracy())
    ignored = score_estimate(torch.cat([hits, torch.full((10,), torch.nan)]), Metric.accuracy())
    assert (ignored.value, ignored.low, ignored.high) == (asked.value, asked.low, asked.high)
    nothing = torch.full((10,), torch.nan)
    drop = paired_drop(torch.cat([0 * hits, nothing]), torch.cat([hits, nothing]), Metric.accuracy())
    assert drop.value == pytest.approx(2 / 3)
    assert drop.low < drop.value < drop.high


def test_accuracy_is_told_where_classes_lie():
    """As many tokens as classes: refused with the way out, right once it is said, or known from the output's kind."""
    outputs, targets = torch.eye(3)[None] * 5, torch.tensor([[0, 1, 2]])
    assert Metric.accuracy(axis=-1).score(outputs, targets) == 1.0
    moved = (torch.eye(3)[[1, 2, 0]])[None]  # answers 1 2 0 along the last dimension, 2 0 1 along dimension 1
    assert Metric.accuracy().settled(Classes(axis=2)).score(moved, torch.tensor([[1, 2, 0]])) == 1.0
    assert Metric.accuracy().settled(Classes(axis=1)).score(moved, torch.tensor([[2, 0, 1]])) == 1.0
    with pytest.raises(WorkloadError, match=r"dimension 1 or 2 of outputs \(1, 3, 3\).*Metric.accuracy\(axis=1\)"):
        Metric.accuracy().score(moved, torch.tensor([[1, 2, 0]]))
    # What was said stays.
    assert Metric.accuracy(axis=1).settled(Classes(axis=2)).score(moved, torch.tensor([[2, 0, 1]])) == 1.0


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_label_accuracy_is_the_sign_of_a_logit(shape: tuple[int, ...]):
    """Logits of 2, -1, 3, -4 for the labels 1, 1, -1 (missing), 0: two of three."""
    outputs, targets = (torch.tensor(values).reshape(shape) for values in ([2.0, -1, 3, -4], [1.0, 1, -1, 0]))
    assert Metric.label_accuracy().score(outputs, targets) == pytest.approx(2 / 3)


def test_label_accuracy_is_each_samples_own_mean():
    """Two labels right of two, one of two: 0.75."""
    outputs, targets = torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.tensor([[1, 0], [0, 1]])
    assert Metric.label_accuracy().score(outputs, targets) == 0.75


@pytest.mark.parametrize(
    ("metric", "outputs", "targets", "expected"),
    [
        (Metric.token_accuracy(), TAGS, torch.tensor([[0, 1], [2, -100]]), None),
        (Metric.pixel_accuracy(), TAGS.movedim(2, 1), torch.tensor([[0, 1], [2, -100]]), None),
        (Metric.label_accuracy(), torch.tensor([[0.0, 2.0]]), torch.tensor([[1, 0]]), None),
        (Metric.mse(), torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2), 5.0),
    ],
)
def test_the_usual_loss_goes_with_the_metric(metric, outputs, targets, expected):
    """Cross-entropy where the classes lie, over labels, or squares."""
    if expected is None and outputs.ndim == 3:
        expected = F.cross_entropy(TAGS.flatten(0, 1), torch.tensor([0, 1, 2, -100])).item()
    elif expected is None:
        expected = (torch.tensor(2.0).log() + F.softplus(torch.tensor(2.0))).item() / 2
    assert metric.usual_loss()(outputs, targets).item() == pytest.approx(expected)
