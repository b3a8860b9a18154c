"""Which scores can be told apart: against values of scipy's tests, by simulation, and letters by hand."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats

from compressor.comparing.significance import letters, p_value, told_apart
from compressor.metrics import Metric

ACCURACY = Metric.accuracy()


pytestmark = pytest.mark.usefixtures("resampled_in_full")


def right(generator: np.random.Generator, share: float, count: int = 400) -> torch.Tensor:
    return torch.from_numpy((generator.random(count) < share).astype(np.float32))


def test_mcnemar_is_the_binomial_test() -> None:
    """Samples that one alone has right decide: 9 against 2 of 100 give scipy's exact value; none give 1."""
    one, other = torch.ones(100), torch.ones(100)
    one[:2], other[2:11] = 0, 0
    wanted = stats.binomtest(2, 11, 0.5).pvalue
    assert p_value([one], [other], ACCURACY) == pytest.approx(wanted)
    assert p_value([other], [one], ACCURACY) == pytest.approx(wanted)
    assert p_value([one], [one], ACCURACY) == 1.0


def test_numbers_are_compared_in_pairs() -> None:
    """Of errors, the paired t test: what is hard for both cancels, unlike in the test of two groups."""
    generator = np.random.default_rng(0)
    hard = generator.normal(5, 3, 500)
    one, other = (torch.from_numpy(hard + generator.normal(mean, 0.5, 500)) for mean in (0.0, 0.1))
    found = p_value([one], [other], Metric.mse())
    assert found == pytest.approx(stats.ttest_rel(one, other).pvalue, rel=1e-6)
    assert found < 0.01 < stats.ttest_ind(one, other).pvalue
    # Of few samples the normal distribution would tell apart too often.
    assert p_value([one[:6]], [other[:6]], Metric.mse()) == pytest.approx(stats.ttest_rel(one[:6], other[:6]).pvalue)


def test_a_metric_that_is_no_mean_is_resampled() -> None:
    """F1 of rows that agree on every sample is alike, and of rows that are wrong on half of them is not."""
    metric = Metric.macro_f1()
    generator = np.random.default_rng(1)
    truth = torch.from_numpy(generator.integers(0, 3, 200))
    logits = torch.nn.functional.one_hot(truth, 3).float()
    good = metric.rows(logits, truth)
    bad = metric.rows(
        logits.roll(1, 1) * (torch.arange(200)[:, None] % 2) + logits * (torch.arange(200)[:, None] % 2 == 0), truth
    )
    assert p_value([good], [good], metric) == 1.0
    assert p_value([good], [bad], metric) < 1e-6


def test_a_recipe_against_itself_over_seeds() -> None:
    """A/A: 200 comparisons of two groups of three trainings that scatter declare a difference in about 5 %.

    Sample by sample alone, without the seeds' scatter, most of them would.
    """
    generator = np.random.default_rng(2)
    found, naive = 0, 0
    for _ in range(200):
        shares = 0.85 + generator.normal(0, 0.03, 6)
        groups = [right(generator, share) for share in shares]
        found += p_value(groups[:3], groups[3:], ACCURACY) < 0.05
        naive += p_value(groups[:1], groups[3:4], ACCURACY) < 0.05
    assert found <= 14  # 95 % of binomial draws at 5 %
    assert naive > 20


def test_a_difference_between_recipes_is_found_over_seeds() -> None:
    """Six points, with seeds that scatter by half a point, are told."""
    generator = np.random.default_rng(3)
    groups = [[right(generator, share + generator.normal(0, 0.005), 2000) for _ in range(3)] for share in (0.86, 0.80)]
    assert p_value(*groups, ACCURACY) < 0.01


def test_pairs_are_corrected_together() -> None:
    """Three files: each pair once, corrected for three."""
    one, other, last = torch.ones(100), torch.ones(100), torch.ones(100)
    other[:8], last[:9] = 0, 0
    found = told_apart({"one": [one], "other": [other], "last": [last]}, ACCURACY)
    assert list(found) == [("one", "other"), ("one", "last"), ("other", "last")]
    assert found["one", "last"] == pytest.approx(3 * 2 * 0.5**9)
    assert found["other", "last"] == 1.0


def test_a_scatter_that_is_small_by_chance_counts_as_that_of_all() -> None:
    """Two rows whose seeds agree to a sample lie two points apart; beside rows that scatter by five they are alike."""

    def rows(*wrong: int) -> list[torch.Tensor]:
        return [torch.cat([torch.zeros(count), torch.ones(400 - count)]) for count in wrong]

    close = {"one": rows(60, 60, 61), "other": rows(68, 68, 69)}
    wide = {str(number): rows(50, 70, 90) for number in range(4)}
    assert told_apart(close, ACCURACY)["one", "other"] < 0.01
    found = told_apart({**close, **wide}, ACCURACY, pairs=[("one", "other")])
    assert found["one", "other"] > 0.2
    # Rows that do not scatter at all, as without training, keep that.
    still = {"one": rows(60, 60, 60), "other": rows(68, 68, 68)}
    assert told_apart({**still, **wide}, ACCURACY, pairs=[("one", "other")])["one", "other"] < 0.01


def test_pairs_that_were_chosen_are_corrected_for_all() -> None:
    """One pair, looked at because it is the largest of six differences: six times its p value."""
    one, other = torch.ones(100), torch.ones(100)
    other[:8] = 0
    rows = {"one": [one], "other": [other]}
    alone = told_apart(rows, ACCURACY)["one", "other"]
    assert alone == pytest.approx(2 * 0.5**8)
    assert told_apart(rows, ACCURACY, among=6) == {("one", "other"): pytest.approx(6 * alone)}


@pytest.mark.parametrize(
    ("apart", "wanted"),
    [
        ([], {"p": "a", "q": "a", "r": "a", "s": "a"}),
        (["ps"], {"p": "a", "q": "a b", "r": "a b", "s": "b"}),
        (["pr", "ps", "qs"], {"p": "a", "q": "a b", "r": "b c", "s": "c"}),
        (["pq", "pr", "ps"], {"p": "a", "q": "b", "r": "b", "s": "b"}),
        (["pq", "pr", "ps", "qr", "qs", "rs"], {"p": "a", "q": "b", "r": "c", "s": "d"}),
    ],
)
def test_letters(apart: list[str], wanted: dict[str, str]) -> None:
    """Piepho's display by hand: whoever is not told apart shares a letter."""
    assert letters("pqrs", {frozenset(pair) for pair in apart}) == wanted


def test_letters_say_what_the_pairs_say() -> None:
    """On random sets of pairs two names share a letter if and only if they are not apart."""
    generator = np.random.default_rng(4)
    names = [f"n{number}" for number in range(8)]
    for _ in range(30):
        apart = {frozenset(pair) for pair in combinations(names, 2) if generator.random() < 0.4}
        found = letters(names, apart)
        for one, other in combinations(names, 2):
            shared = bool(set(found[one].split()) & set(found[other].split()))
            assert shared == (frozenset((one, other)) not in apart)
