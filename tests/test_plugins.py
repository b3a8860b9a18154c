"""What other packages add by entry points: what works is there, what does not is told and stops nothing else."""

import re
import sys
import textwrap
import tomllib
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from compressor.cli.app import app
from compressor.cli.exits import reported
from compressor.errors import RecipeError
from compressor.inspection.doctor import Grade, check_stages
from compressor.machine import unreadable_packages
from compressor.plugins import CRITERIA, STAGES, PluginWarning
from compressor.pruning.ranking.criteria import criteria
from compressor.recipe.recipe import Recipe
from compressor.stages import BUILT_IN, catalogue
from workbench import ROOT

HEAD = """\
from __future__ import annotations
from dataclasses import dataclass, field
from typing import Any, ClassVar
from compressor.pruning.ranking.criterion import Criterion
from compressor.stage import Effect

"""
STAGE = """\
@dataclass(frozen=True, kw_only=True)
class {name}:
    '''Does nothing.'''

    effect: ClassVar[Effect] = Effect.VALUES
    {field}

    def apply(self, model, workload, context):
        return model
"""
CRITERION = """\
@dataclass(frozen=True, kw_only=True)
class {name}:
    '''Judges nothing.'''

    {field}

    def scores(self, case):
        return {{}}
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A function that installs a package with one module and one entry point, for one test."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(package: str, source: str, entry: str, group: str = STAGES) -> None:
        (tmp_path / f"{package}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{package}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
        monkeypatch.delitem(sys.modules, package, raising=False)
        # Another path: what is installed is looked up once for each.
        monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / package)])

    return put


BROKEN = {
    "lacks": ("import no_such_library", "Mine", "ModuleNotFoundError: No module named 'no_such_library'"),
    "syntax": ("def broken(:", "Mine", "SyntaxError: "),
    "leaves": ("import sys\nsys.exit('not on this machine')", "Mine", "SystemExit: not on this machine"),
    "raises": ("class Odd(BaseException): pass\nraise Odd('of its own kind')", "Mine", "Odd: of its own kind"),
    "no_class": ("", "Mine", "AttributeError: module 'no_class' has no attribute 'Mine'"),
    "function": ("def Mine(): pass", "Mine", "wanted is a dataclass, got an object of type function"),
    "plain": ("class Mine: pass", "Mine", "wanted is a dataclass, got the class Mine"),
    "no_apply": (
        "from dataclasses import dataclass\n@dataclass\nclass Mine: pass",
        "Mine",
        "wanted is a dataclass with",
    ),
    "no_hint": (HEAD + STAGE.format(name="Mine", field="x: Unknown = 1"), "Mine", "NameError: name 'Unknown'"),
    "default": (
        HEAD + STAGE.format(name="Mine", field="x: int = field(default_factory=lambda: 1 // 0)"),
        "Mine",
        "ZeroDivisionError: integer",
    ),
    "itself": (HEAD + STAGE.format(name="Mine", field="x: Mine | None = None"), "Mine", "RecursionError: "),
    "written": ("", "what is this?", ""),
}


@pytest.mark.parametrize("package", BROKEN)
def test_a_broken_stage_is_a_warning_that_names_it_and_stops_nothing_else(package: str, install: Install) -> None:
    """Other stages stay; who names the broken one is told why; the command line does the same."""
    source, attribute, told = BROKEN[package]
    install(package, source, f"mine = {package}:{attribute}")
    with pytest.warns(
        PluginWarning, match=rf"left out, 'mine' of {package} 1\.5 in the group compressor\.stages"
    ) as all_:
        assert Recipe.loads("stages: [quantize]").stages
    listed = CliRunner().invoke(app, ["stages"])
    assert told in str(all_[0].message)
    assert len(all_) == 1
    assert (listed.exit_code, listed.stderr) == (0, ""), "told once a process"
    assert "mine" not in {line.split()[0] for line in listed.stdout.splitlines() if line.strip()}
    assert set(BUILT_IN) <= set(catalogue().values())
    with pytest.raises(RecipeError, match=rf"the stage 'mine' cannot be used: 'mine' of {package} 1\.5") as caught:
        Recipe.loads("stages: [quantize, mine]")
    assert told in str(caught.value)
    named = CliRunner().invoke(app, ["stages", "mine"])
    assert (named.exit_code, "the stage 'mine' cannot be used" in named.stderr) == (2, True)
    finding = check_stages()
    assert finding.grade is Grade.NOTE
    assert f"'mine' of {package} 1.5" in finding.says


@pytest.mark.parametrize(
    ("field", "body", "told"),
    [
        ("power: float = 1.0", "raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("inner: Criterion | None = None", "", "its fields hold its own kind"),
        ("power: Unknown = 1.0", "", "NameError: name 'Unknown' is not defined"),
    ],
)
def test_a_broken_criterion_is_a_warning_too(field: str, body: str, told: str, install: Install) -> None:
    """Stages that rank channels keep the other criteria; naming the broken one tells why."""
    install("ranks", HEAD + body + "\n" + CRITERION.format(name="Mine", field=field), "mine = ranks:Mine", CRITERIA)
    with pytest.warns(PluginWarning, match=r"'mine' of ranks 1\.5 in the group compressor\.criteria") as caught:
        assert Recipe.loads("stages: [{prune_channels: {remove: 0.5, criterion: l1}}]").stages
    assert told in str(caught[0].message)
    with pytest.raises(RecipeError, match=r"criterion 'mine' cannot be used: 'mine' of ranks 1\.5"):
        Recipe.loads("stages: [{prune_channels: {remove: 0.5, criterion: mine}}]")


def test_a_name_that_comes_with_the_package_stays_its_own(install: Install) -> None:
    """A second `Quantize` is left out: recipes mean what they meant before it was installed."""
    before = catalogue()
    install("twice", HEAD + STAGE.format(name="Quantize", field=""), "better = twice:Quantize")
    with pytest.warns(PluginWarning, match=r"'better' of twice 1\.5.*'quantize' is what comes with the package"):
        assert catalogue() == before
    assert Recipe.loads("stages: [quantize]").stages[0] == before["quantize"]()
    with pytest.raises(RecipeError, match="the stage 'better' cannot be used"):
        Recipe.loads("stages: [better]")


def test_of_packages_that_share_a_name_none_is_guessed(install: Install) -> None:
    """Which of several was meant would depend on the order of installation: all are left out, and named."""
    for package in ("first", "second", "third"):
        install(package, HEAD + STAGE.format(name="Mine", field=""), f"mine = {package}:Mine")
    with pytest.warns(PluginWarning) as caught:
        assert "mine" not in catalogue()
    assert len(caught) == 3
    assert all(name in str(caught[0].message) for name in ("first 1.5", "second 1.5", "third 1.5"))
    with pytest.raises(RecipeError, match="the stage 'mine' cannot be used"):
        Recipe.loads("stages: [mine]")


def test_a_class_that_two_entry_points_name_is_one(install: Install, tmp_path: Path) -> None:
    """The same class under a second entry point is no collision; a damaged list of another package is passed over."""
    install("once", HEAD + STAGE.format(name="Mine", field="x: int = 1"), "mine = once:Mine\nalias = once:Mine")
    damaged = tmp_path / "damaged-2.0.dist-info"
    damaged.mkdir()
    (damaged / "METADATA").write_text("Metadata-Version: 2.1\nName: damaged\nVersion: 2.0\n")
    (damaged / "entry_points.txt").write_bytes(b"\xff\xfe[console_scripts]\nx")
    assert Recipe.loads("stages: [{mine: {x: 3}}]").stages[0].x == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("metadata", [b"Metadata-Version: 2.1\nName: torn\nVersion: 3.0\n", b"Name: \xff\xfe\n", b""])
def test_a_list_that_stops_every_import_is_told_with_its_package(
    metadata: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Torch reads the lists of all packages at its import; what it raises names none."""
    torn = tmp_path / "torn-3.0.dist-info"
    torn.mkdir()
    (torn / "METADATA").write_bytes(metadata)
    monkeypatch.syspath_prepend(tmp_path)
    assert unreadable_packages() == []
    (torn / "entry_points.txt").write_bytes(b"[torch.backends]\nx = \xff")
    (told,) = unreadable_packages()
    name = "torn 3.0" if b"torn" in metadata else "the package torn-3.0.dist-info"
    assert told.startswith(f"the list of entry points of {name} in {tmp_path} cannot be read ('utf-8' codec")
    with pytest.raises(typer.Exit), reported(verbose=False):
        entry_points(group="torch.backends")
    assert f"error: the list of entry points of {name}" in capsys.readouterr().err
    assert set(BUILT_IN) <= set(catalogue().values())


def test_a_list_of_entry_points_that_cannot_be_read_names_its_package(install: Install) -> None:
    """A line without a value is told with the package that wrote it, and the rest goes on."""
    install("damaged", "", "mine")
    with pytest.warns(PluginWarning, match=r"one of damaged 1\.5 in the group compressor\.stages"):
        assert Recipe.loads("stages: [quantize]").stages
    assert set(BUILT_IN) <= set(catalogue().values())


def test_a_plugin_that_refuses_its_settings_in_its_own_way_is_a_recipe_error(install: Install) -> None:
    """Whatever its constructor raises is told with the line of the stage."""
    body = "x: int = 1\n\n    def __post_init__(self):\n        {}[self.x]"
    install("refuses", HEAD + STAGE.format(name="Mine", field=body), "mine = refuses:Mine")
    with pytest.raises(RecipeError, match=r"r\.yaml:1: KeyError: 5"):
        Recipe.loads("stages: [{mine: {x: 5}}]", source="r.yaml")
    assert "mine" not in criteria()


def test_the_page_on_adding_a_stage_works_as_it_is_written(install: Install) -> None:
    """Modules, entry points and lines of recipes are taken from docs/adding_a_stage.md letter by letter."""
    page = (ROOT / "docs" / "adding_a_stage.md").read_text(encoding="utf-8")
    for group, package, named in ((STAGES, "clipping", "clip_weights"), (CRITERIA, "largest", "largest_weight")):
        source = re.search(rf"```python\n(# {package}\.py\n.*?)```", page, re.DOTALL)
        entry = re.search(rf'\[project\.entry-points\."{re.escape(group)}"\]\n(\w+) = "(.*?)"', page)
        assert source is not None
        assert entry is not None
        assert entry[1] == named
        install(package, source[1], f"{entry[1]} = {entry[2]}", group)
    (project,) = re.findall(r"```toml\n(# pyproject\.toml\n.*?)```", page, re.DOTALL)
    assert tomllib.loads(project)["tool"]["setuptools"]["py-modules"] == ["clipping"]
    lines = re.findall(r"`(- \w+: \{.*?\})`", page)
    assert len(lines) == 2
    clip, prune = Recipe.loads("stages:\n" + "".join(f"  {line}\n" for line in lines)).stages
    assert clip.deviations == 3
    assert prune.criterion.power == 2.0
    listed = CliRunner().invoke(app, ["stages", "clip_weights"])
    assert (listed.exit_code, "deviations" in listed.stdout) == (0, True)
