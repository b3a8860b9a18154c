"""What other libraries say reaches people as one plain line of bounded length."""

import json

import pytest

from compressor.errors import LONGEST, LONGEST_REASON, ExportError, RecipeError, StageError, bounded, first_said, plain
from compressor.notes.running import Exported

COLOURED = "\x1b[96m\x1b[1mFailed\x1b[0m to decompose"
PAGES = "graph\n" * 500


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (COLOURED, "Failed to decompose"),
        ("\x1b[38;5;208mwarm\x1b[K\x1b[2J", "warm"),
        ("\x1b]8;;https://pytorch.org\x1b\\docs\x1b]8;;\x07", "docs"),
        ("\x9b31mred\x1b(B, \x1b7kept", "red, kept"),
        ("10 %\r20 %\x08\x07", "10 %20 %"),
        ("cut off \x1b", "cut off "),
        ("first\n\tsecond\r\nthird [0m", "first\n\tsecond\r\nthird [0m"),
    ],
)
def test_escapes_and_controls_go_and_the_rest_stays(text: str, shown: str) -> None:
    """Colours, links, cursor movements and bells are left out; line breaks, tabs and brackets are text."""
    assert plain(text) == shown


def test_an_error_says_its_first_line() -> None:
    """Pages behind the first line, empty lines before it and the full stop are left out; silence is named."""
    assert first_said(RuntimeError(f"\n\n  {COLOURED}.\n{PAGES}")) == "Failed to decompose"
    assert first_said(KeyError()) == "KeyError"
    long = first_said(ValueError("x" * 9999))
    assert len(long) == LONGEST_REASON
    assert long.endswith("x...")


@pytest.mark.parametrize("kind", [ExportError, StageError])
def test_errors_and_notes_are_plain_whatever_they_quote(kind: type[Exception]) -> None:
    """A message that quotes a coloured one is clean, and pages are cut; so are the notes in the report."""
    assert str(kind(f"tried dynamo: {COLOURED}")) == "tried dynamo: Failed to decompose"
    assert len(str(kind("page\n" * 9999))) <= LONGEST
    assert str(RecipeError([COLOURED, "second"])) == "Failed to decompose\nsecond"
    note = Exported(exporter="dynamo", opset=20, notes=(COLOURED,))
    assert "\\u001b" not in json.dumps(note.to_json())
    assert note.to_json()["export"]["notes"] == ["Failed to decompose"]


def test_short_texts_are_not_cut() -> None:
    """The bound is inclusive."""
    assert bounded("abcd", 4) == "abcd"
    assert bounded("abcde", 4) == "a..."
