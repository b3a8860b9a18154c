"""Workloads by name: whose code is run, and what is said of names that mean nothing or two things."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import compressor.workloads.digits
from compressor.errors import WorkloadError
from compressor.workloads import load
from workbench import ROOT
from workbench.tiny import TinyResNet, make_workload

# Files that people have beside their data, called like libraries that the package itself imports.
LIBRARIES = (
    "sklearn",
    "torch",
    "yaml",
    "numpy",
    "onnx",
    "onnxruntime",
    "typer",
    "rich",
    "pydantic",
    "tqdm",
    "safetensors",
)
MINE = """\
import helper
from workbench.tiny import TinyResNet, make_workload

def tiny():
    return make_workload(TinyResNet(width=helper.WIDTH).eval(), train=64, test=32, batch_size=16)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a workload and files called like libraries, each of which leaves a trace when it is run."""
    for name in LIBRARIES:
        (tmp_path / f"{name}.py").write_text("import pathlib\npathlib.Path('trace').write_text(__name__)\n")
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "helper.py").write_text("WIDTH = 8\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *(entry for entry in sys.path if entry)])
    for name in ("mine", "helper"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("python", "command", "shown"),
    [
        (("-m", "compressor.cli"), ("run", "int8", "-w", "mine:tiny", "--dry-run"), "checks passed"),
        (("-c", "from compressor.cli import main; main()"), ("--help",), "compare"),
    ],
    ids=["module", "code"],
)
def test_the_current_folder_hides_no_library(
    python: tuple[str, ...], command: tuple[str, ...], shown: str, folder: Path
) -> None:
    """Started from that folder, the command runs no file of it but the module that is named, and what that imports."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *python, *command], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert shown in done.stdout
    assert not (folder / "trace").exists(), (folder / "trace").read_text()


def test_a_ready_workload_leaves_the_path_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `module:function` makes the folder importable, behind everything that is installed, once."""
    before = list(sys.path)
    tiny = make_workload(TinyResNet(width=8), train=64, test=32)
    monkeypatch.setattr(compressor.workloads.digits, "digits", lambda: tiny)
    assert load("digits") is tiny
    assert sys.path == before
    load("mine:tiny")
    load("mine:tiny")
    assert sys.path == [*before, str(folder)]


def test_a_module_of_a_name_that_is_installed_is_refused(folder: Path) -> None:
    """Which of two modules is meant is not guessed: both are named, with the way out."""
    with pytest.raises(ValueError, match=r"'yaml' is \S+/yaml\.py and also \S+/yaml/__init__\.py.*another name"):
        load("yaml:tiny")
    assert not (folder / "trace").exists()


def test_a_module_of_another_folder_is_not_taken_for_this_one(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a change of folder, a module of the same name that was loaded before is not silently used again."""
    load("mine:tiny")
    other = tmp_path_factory.mktemp("other")
    (other / "mine.py").write_text(MINE)
    monkeypatch.chdir(other)
    with pytest.raises(ValueError, match=r"'mine' is .*other\d*/mine\.py and also .*/mine\.py"):
        load("mine:tiny")


def test_a_folder_of_data_gives_way_to_a_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without code that is called like an installed package is nobody's rival."""
    (folder / "workbench").mkdir()
    with pytest.raises(ValueError, match=r"workbench\.tiny has no function 'nothing'"):
        load("workbench.tiny:nothing")


@pytest.mark.parametrize(
    "name", ["", "digit", "mined", "mine:", ":tiny", ".mine:tiny", "a b:c", "a\0b:c", "a/b:c", "x" * 5000]
)
def test_what_names_no_workload_is_one_typed_error(name: str, folder: Path) -> None:
    """Whatever is written there, the three ways to name a workload are told, in a sentence of bounded length."""
    with pytest.raises(WorkloadError, match=r"a workload is one of digits, package\.module:function") as caught:
        load(name)
    assert len(str(caught.value)) < 500
