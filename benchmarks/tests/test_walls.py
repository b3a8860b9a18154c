"""Tests and benchmarks stay apart: what both need is in workbench/, and every benchmark is found and starts."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from workbench import ROOT

BENCHMARKS = [path for path in (ROOT / "benchmarks").rglob("*.py") if "tests" not in path.parts[len(ROOT.parts) :]]
COMMANDS = [path for path in BENCHMARKS if "\ndef main() -> None:\n" in path.read_text(encoding="utf-8")]


@cache
def imported(path: Path) -> set[str]:
    """The first names of all modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").partition(".")[0])
    return found


def offenders(folder: str, forbidden: str) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py") if forbidden in imported(path)]


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("tests", "benchmarks"),
        ("benchmarks", "tests"),
        ("workbench", "tests"),
        ("workbench", "benchmarks"),
        ("compressor", "tests"),
        ("compressor", "benchmarks"),
        ("compressor", "workbench"),
    ],
)
def test_nobody_reaches_over_the_wall(folder: str, forbidden: str) -> None:
    """Tests import no benchmark, benchmarks no test, what both share neither, and the package none of the three."""
    assert offenders(folder, forbidden) == []


def test_imports_inside_functions_are_seen(tmp_path: Path) -> None:
    """A module that a function imports counts like one at the top."""
    path = tmp_path / "late.py"
    path.write_text("import ast\ndef late():\n    from tests.structure import test_plan\n", encoding="utf-8")
    assert imported(path) == {"ast", "tests"}


def test_no_folder_holds_more_than_twenty_modules() -> None:
    """Twenty files are what one takes in at a glance."""
    folders = {path.parent for path in (ROOT / "benchmarks").rglob("*.py")}
    counts = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert {folder: count for folder, count in counts.items() if count > 20} == {}


def test_the_makefile_starts_every_benchmark() -> None:
    """`python -m` names modules that exist, and no command of a benchmark is forgotten but those that others start."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    started = set(re.findall(r"python -m (benchmarks[\w.]*)", makefile))
    there = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__") for path in COMMANDS}
    others = {
        "benchmarks.data.mobilenet",
        "benchmarks.peers.keras_process",
        "benchmarks.peers.quantizer_process",
        "benchmarks.structure.hub_process",
    }
    assert started == there - others
