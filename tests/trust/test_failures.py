"""The table of what goes wrong names tests that there are."""

import re

from workbench import ROOT

PAGE = ROOT / "docs/failures.md"
# What may be unpickled: what this program, or the one that it works for, pickled a moment ago.
OWN_PICKLES = {
    "files/exporters.py",
    "running/executors/sending.py",
    "training/distributed/team.py",
}


def rows() -> list[tuple[str, str]]:
    """(number, the rest) of every row of the page."""
    return re.findall(r"^\| (\d+) \|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_row_is_proved_or_says_why_not() -> None:
    """Both lists are whole, and every test that is named is a function of the file that is named."""
    numbers = [int(number) for number, _ in rows()]
    assert numbers == [*range(1, 33), *range(1, 37)]
    functions: dict[str, set[str]] = {}
    for number, row in rows():
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named or "annot apply" in row, f"row {number} names no test and no reason"
        assert row.count("`tests/") == len(named), f"row {number} names something that is no test"
        for path, name in named:
            if path not in functions:
                text = (ROOT / path).read_text(encoding="utf-8")
                functions[path] = {*re.findall(r"^def (\w+)\(", text, re.MULTILINE)}
            assert name in functions[path], f"row {number}: {path} has no {name}"


def test_nothing_that_is_read_is_unpickled() -> None:
    """No line of the package loads a pickle, a checkpoint of torch's, or YAML with tags, but for its own messages."""
    loads = re.compile(r"\b(pickle|cloudpickle|joblib|dill|marshal|shelve)\.(load|loads|open|Unpickler)\b")
    others = re.compile(r"\btorch\.load\b|allow_pickle=True|\byaml\.(load|full_load|unsafe_load)\b|read_pickle")
    found = set()
    for path in (ROOT / "compressor").rglob("*.py"):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT / "compressor").as_posix()
        assert not others.search(text), name
        if "load" in text and loads.search(text):
            found.add(name)
    assert found == OWN_PICKLES
