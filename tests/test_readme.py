"""What the documents tell people to type works."""

import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from compressor import workloads
from workbench import ROOT

PAGES = sorted((ROOT / "docs").rglob("*.md"))


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def test_readme_example_runs(trained_workload, tmp_path, monkeypatch, capsys):
    """The README's example compresses a user's own model and prints where the file is."""
    monkeypatch.chdir(tmp_path)
    block, use = python_blocks(ROOT / "README.md")
    images, labels = trained_workload.train.samples
    test_images, test_labels = trained_workload.test.samples
    names = {
        "model": trained_workload.model,
        "images": images,
        "labels": labels,
        "test_images": test_images,
        "test_labels": test_labels,
    }
    # One epoch says as much about the example as eight.
    exec(compile(block.replace("epochs=8", "epochs=1, tail_epochs=0"), "README.md", "exec"), names)
    assert Path("runs/mine/model.onnx").stat().st_size > 1000
    assert str(Path("runs/mine/model.onnx")) in capsys.readouterr().out
    exec(compile(use, "README.md", "exec"), names)
    assert capsys.readouterr().out == "(1, 4)\n"


def test_the_documented_stage_keeps_the_contract(trained_workload, monkeypatch):
    """The stage that docs/adding_a_stage.md shows passes the test that the page shows, but for its workload."""
    stage, test = python_blocks(ROOT / "docs" / "adding_a_stage.md")[:2]
    module = ModuleType("clipping")
    exec(compile(stage, "clipping.py", "exec"), vars(module))
    monkeypatch.setitem(sys.modules, "clipping", module)
    monkeypatch.setattr(workloads, "load", {"digits": trained_workload}.__getitem__)
    names: dict = {"__name__": "test_clipping"}
    exec(compile(test, "test_clipping.py", "exec"), names)
    names["test_clip_weights_keeps_the_contract"]()
    with pytest.raises(ValueError, match="must be positive"):
        module.ClipWeights(deviations=-1)


def test_a_run_is_followed_as_documented(trained_workload, tmp_path):
    """The first example of docs/tracking.md, as it stands there."""
    names = {"workload": trained_workload, "out": tmp_path}
    exec(compile(python_blocks(ROOT / "docs" / "tracking.md")[0], "tracking.md", "exec"), names)
    assert len(names["losses"]) >= 2


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", *(str(path.relative_to(ROOT)) for path in PAGES)])
def test_links_lead_somewhere(name):
    """Every relative link of the document exists."""
    path = ROOT / name
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if not (path.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("name", ["budgets.md", "target.md"])
def test_lines_of_the_guides_run(name):
    """Every value that the page shows can be made."""
    for block in python_blocks(ROOT / "docs" / name):
        exec(compile(block, name, "exec"), {})


def test_every_page_stands_in_the_menu_of_the_site():
    """The site has all pages that docs/ has, and no other; every object of the API page exists."""
    menu = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2])
    assert sorted(menu) == sorted(str(path.relative_to(ROOT / "docs")) for path in PAGES)
    for line in re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE):
        module, _, name = line.rpartition(".")
        assert line == "compressor.errors" or hasattr(import_module(module), name), line
