"""What the documents tell people to type works."""

import re
from pathlib import Path

import pytest

from compressor.testing import check_stage
from workbench import ROOT


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def test_readme_example_runs(trained_workload, tmp_path, monkeypatch, capsys):
    """The README's example compresses a user's own model and prints where the file is."""
    monkeypatch.chdir(tmp_path)
    (block,) = python_blocks(ROOT / "README.md")
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


def test_the_documented_stage_keeps_the_contract(trained_workload):
    """The stage that docs/adding_a_stage.md shows passes check_stage."""
    names: dict = {"__name__": "clipping"}
    exec(compile(python_blocks(ROOT / "docs" / "adding_a_stage.md")[0], "clipping.py", "exec"), names)
    check_stage(names["ClipWeights"](), trained_workload)
    with pytest.raises(ValueError, match="must be positive"):
        names["ClipWeights"](deviations=-1)


@pytest.mark.parametrize("name", ["README.md", "docs/architecture.md", "docs/adding_a_stage.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(name):
    """Every relative link of the document exists."""
    path = ROOT / name
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if not (path.parent / link).exists()]
    assert missing == []
