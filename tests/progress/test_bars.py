"""Bars and lines of progress: on a terminal alone, and nothing broken inside a word at 80 columns."""

import io
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from compressor.progress.bars import progress_bar, say, showing, tick, waiting, wrapped


class Terminal(io.StringIO):
    """What stderr is in a terminal."""

    def isatty(self) -> bool:
        return True


def opened(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 80 columns; called in the test itself, for pytest sets stderr anew after the fixtures."""
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    return made


def _lines(terminal: Terminal) -> list[str]:
    return [
        line.strip()
        for line in terminal.getvalue().replace("\x1b[A", "").replace("\r", "\n").split("\n")
        if line.strip()
    ]


def test_a_training_fits_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, times, loss and score stand there whole; a long name loses its last words."""
    terminal = opened(monkeypatch)
    for name in ("training", "learning what the very large network of the teacher says"):
        with progress_bar(total=592, initial=100, desc=name, unit="batch", shown=True) as bar:
            bar.set_postfix(loss="0.1272", score="0.9916")
            bar.refresh()
        line = _lines(terminal)[-1]
        assert len(line) <= 80
        assert line.endswith("to go, loss=0.1272, score=0.9916")
        assert " 17% |" in line
    assert line.startswith("learning what ... ")


def test_what_has_no_length_counts_or_says_how_long_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator counts its items; work that nothing measures shows the clock."""
    terminal = opened(monkeypatch)
    items = iter(progress_bar((item for item in "abc"), desc="reading", unit="item", shown=True))
    next(items)
    with progress_bar(desc="exporting", shown=True) as bar:
        bar.refresh()
    assert _lines(terminal)[-1] == "exporting 00:00"


def test_a_length_that_is_refused_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader of a stream has a method for it, which raises."""
    opened(monkeypatch)

    class Stream:
        def __len__(self) -> int:
            raise TypeError("no length")

        def __iter__(self) -> Iterator[int]:
            return iter(range(3))

    assert list(progress_bar(Stream(), desc="stream", unit="batch", shown=True)) == [0, 1, 2]


def test_there_are_none_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of stages come whole; bars do not come at all."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    with progress_bar(range(3), desc="ranking", shown=True) as bar:
        bar.refresh()
        assert list(bar) == [0, 1, 2]
    long = "word " * 40
    say(long.strip(), shown=True)
    assert written.getvalue() == long.strip() + "\n"


def test_what_a_run_wants_holds_for_what_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a run nothing shows itself; what is told not to keeps still inside, too."""
    terminal = opened(monkeypatch)
    say("outside")
    with showing(True):
        say("inside")
        say("kept back", shown=False)
        with showing(False):
            say("quiet")
    say("after")
    assert _lines(terminal) == ["inside"]


def test_a_wait_is_shown_where_stderr_is_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporters write what they like, and are not heard meanwhile."""
    terminal = opened(monkeypatch)
    tick()
    with showing(True), waiting("exporting"), redirect_stderr(io.StringIO()):
        tick()
    tick()
    assert _lines(terminal) == ["exporting 00:00"] * 2


def test_lines_break_between_words() -> None:
    """Later lines stand further in; a word that is longer than the line stays whole."""
    text = "  accuracy 0.9889, 0.043 ms (8.95x), 659 KiB, 1.0 s; 4.17x [3.86, 4.51] faster, file 3.91x smaller"
    lines = wrapped(text, 80).split("\n")
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].startswith("  accuracy")
    assert lines[1].startswith("    ")
    assert " ".join(line.strip() for line in lines) == text.strip()
    path = str(Path("/a") / ("b" * 90))
    assert path in wrapped(f"wrote {path}", 80).split("\n")[1]
