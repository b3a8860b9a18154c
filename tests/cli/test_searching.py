"""The command `auto`: what it passes on, how it ends, and what it refuses."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from compressor.cli.app import app
from compressor.cli.searching import parsed_size
from compressor.errors import WrongUseError

AUTO = ("auto", "-w", "digits", "--out", "runs/auto")


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def fake_search(monkeypatch):
    """search() that does nothing and remembers what it was asked; `.within` and `.found` decide how it ends."""
    state = SimpleNamespace(asked={}, within=True, found=True)

    def search(workload, space, **asked):
        state.asked = {"workload": workload, "space": space, **asked}
        return SimpleNamespace(
            print=lambda: print("the table"),  # noqa: T201
            to_json=lambda: {"why": "so"},
            recipe=object() if state.found else None,
            within_limits=state.within,
        )

    monkeypatch.setattr("compressor.searching.search.search", search)
    monkeypatch.setattr("compressor.cli.searching.workload_of", lambda name, **_: name)
    return state


def test_what_is_asked_is_passed_on(fake_search) -> None:
    """Limits, minutes and the space; the path of the recipe is printed after the table."""
    code, out, err = call(
        *AUTO, "int8", "prune_only", "--max-drop", "0.02", "--max-latency-ms", "2", "--max-size", "300KiB",
        "--minutes", "60", "--sampler", "grid", "--threads", "2", "--set", "seed=3",
    )  # fmt: skip
    assert (code, out, err) == (0, f"the table\n{Path('runs/auto/best.yaml')}\n", "")
    asked = fake_search.asked
    assert [(recipe.name, recipe.seed) for recipe in asked["space"]] == [("int8", 3), ("prune_only", 3)]
    assert (asked["max_drop"], asked["max_latency_ms"], asked["max_size_bytes"]) == (0.02, 2.0, 300 * 1024)
    assert (asked["minutes"], asked["target"].threads, type(asked["sampler"]).__name__) == (60.0, 2, "Grid")
    call(*AUTO)
    assert (fake_search.asked["space"], fake_search.asked["max_drop"]) == (None, 0.01)


def test_exit_codes_and_json(fake_search) -> None:
    """3 where nothing keeps the limits; JSON alone on stdout where it is asked for."""
    assert json.loads(call(*AUTO, "--json")[1]) == {"why": "so"}
    fake_search.within = fake_search.found = False
    code, out, err = call(*AUTO, "--quiet")
    assert (code, out) == (3, f"{Path('runs/auto/search.html')}\n")
    assert err == "nothing keeps the limits; search.html says what comes nearest\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--max-size", "big"), "--max-size is a size above 0 such as 300KiB, 2MB or 4096 (bytes), got 'big'"),
        (("--sampler", "guess"), "unknown sampler 'guess' (known: random, grid, optuna)"),
        (("--set", "seed=3"), "--set and --student go into a space of yours, and none is given"),
        (("int9",), "no recipe 'int9'"),
        (("--max-drop", "90"), "error: max_drop is a fraction"),
        (("--max-latency-ms", "-1"), "error: max_latency_ms is a limit of the file, above 0; got -1.0"),
        (("--minutes", "0"), "error: --minutes is the time that the search may take, above 0; got 0.0"),
        (("--minutes", "nan"), "error: --minutes is the time that the search may take"),
    ],
)
def test_wrong_use(fake_search, arguments: tuple[str, ...], says: str) -> None:
    """A sentence and exit code 2."""
    code, _, err = call(*AUTO, *arguments)
    assert code == 2
    assert says in err


def test_help_teaches() -> None:
    """What is found, by what, and how it goes on."""
    code, out, _ = call("auto", "--help")
    assert code == 0
    for text in ("--max-drop", "--minutes", "best.yaml", "goes on where it was stopped", "sweep"):
        assert text in out


def test_sizes() -> None:
    """Decimal and binary units, with or without a space, and bytes."""
    assert [parsed_size(text) for text in ("300KiB", "2 MB", "1.5mib", "4096", "10 b")] == [
        307200, 2_000_000, 1572864, 4096, 10,
    ]  # fmt: skip
    for text in ("", "-1", "0", "1e3", "5 parsecs"):
        with pytest.raises(WrongUseError, match="--max-size is a size"):
            parsed_size(text)
