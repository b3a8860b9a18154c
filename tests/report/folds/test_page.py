"""What a cross-validation tells, by hand, in the terminal, in Markdown and on its page."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from compressor.errors import StorageError
from compressor.report.folds.page import conclusions, folds_html, folds_markdown, print_folds
from compressor.report.folds.record import FoldsRecord, deviation
from workbench.several_samples import fold as row
from workbench.several_samples import three_folds

RECORD = three_folds()


def test_means_by_hand() -> None:
    """Drops of 2, 4 and 6 points: S^2 = 4, variance of the mean (1/3 + 1/2) 4, t = 4.302653: 4 +- 7.855533 points."""
    assert RECORD.score.value == pytest.approx(0.88)
    assert RECORD.score.high == pytest.approx(0.88)
    drop = RECORD.drop
    assert (drop.value, drop.high - drop.value) == (pytest.approx(0.04), pytest.approx(0.07855533, abs=1e-7))
    assert deviation([0.02, 0.04, 0.06]) == pytest.approx(0.02)


def test_what_is_told_of_them() -> None:
    """The change with its interval, and that it includes none; the budget; how references came about."""
    assert conclusions(RECORD) == [
        "3 folds: accuracy 88.0 % on average, 92.0 % before.",
        "The change is -4.0 points [-11.9, 3.9]: not to be told apart from none.",
        "The budget is met in 2 of 3 folds.",
        "Each fold has a reference of its own, trained without the samples that the fold tests on.",
    ]
    certain = replace(RECORD, rows=tuple(row(f"fold-{n}", 0.9, 0.86 + n / 1000) for n in (1, 2, 3)), budgeted=False)
    assert "worse than chance explains" in conclusions(certain)[1]
    unchanged = replace(RECORD, rows=tuple(replace(one, kept=False) for one in RECORD.rows))
    assert "In 3 of 3 folds no stage was kept" in " ".join(conclusions(unchanged))


def test_a_difference_of_two_recipes_is_paired_by_fold() -> None:
    """The second loses 1 point more in every fold: 1 point, without a width."""
    other = replace(RECORD, rows=tuple(row(one.name, one.reference.value, 0.87) for one in RECORD.rows))
    found = other.difference(RECORD)
    assert (found.value, found.low, found.high) == tuple(pytest.approx(0.01) for _ in range(3))


def test_no_accuracy_is_above_one() -> None:
    """Scores of 98, 99 and 100 %: Student's interval would reach 101.3 %; an error of 1 has no such end."""
    high = replace(RECORD, rows=tuple(row(one.name, 0.5, 0.97 + n / 100) for n, one in enumerate(RECORD.rows, 1)))
    assert (high.score.low, high.score.high) == (pytest.approx(0.99 - 0.039277664, abs=1e-7), 1.0)
    low = replace(RECORD, rows=tuple(row(one.name, 0.5, n / 100) for n, one in enumerate(RECORD.rows)))
    assert low.score.low == 0.0
    errors = replace(high, workload={"name": "numbers", "metric": "mse"})
    assert errors.score.high == pytest.approx(0.99 + 0.039277664, abs=1e-7)


def test_errors_are_told_as_fractions() -> None:
    """Of an error that is better where smaller the difference is a fraction of the other's."""
    made = replace(RECORD, workload={"name": "numbers", "metric": "mse"})
    worse = replace(made, rows=tuple(row(one.name, 1.0, one.score.value * 1.1) for one in made.rows))
    assert worse.difference(made).value == pytest.approx(0.1)


def test_terminal_markdown_and_page_say_the_same() -> None:
    """Every way has the rows, their mean and deviation, and the sentences; names are escaped; links stay inside."""
    written = io.StringIO()
    print_folds(RECORD, Console(file=written, width=120))
    page, text, shown = folds_html(RECORD), folds_markdown(RECORD), written.getvalue()
    for told in (page.replace("\N{MINUS SIGN}", "-"), text.replace("\\", ""), shown):
        for part in ("fold-2", "mean", "deviation", "before 92.0 %", "-4.0", "[-11.9, 3.9]", "2 of 3 folds"):
            assert part in told
    assert 'href="./fold-2/report.html"' in page
    assert "<b>" not in page
    assert "three &lt;b&gt;" in page
    assert "://" not in page


def test_the_json_gives_the_record_back() -> None:
    """What is stored is read again; another layout is refused."""
    stored = json.loads(json.dumps(RECORD.to_json()))
    assert FoldsRecord.from_json(stored) == RECORD
    assert stored["means"]["drop"]["deviation"] == pytest.approx(0.02)
    for odd in ({}, {**stored, "schema_version": 9}, {**stored, "rows": [{}]}, []):
        with pytest.raises(StorageError, match="run it again"):
            FoldsRecord.from_json(odd)
