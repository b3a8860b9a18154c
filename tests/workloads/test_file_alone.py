"""An ONNX file without data: forms that need none, sizes and times measured, and "not scored" in large letters."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from compressor.budget import Budget
from compressor.cli.app import app
from compressor.errors import StageError
from compressor.files.export import export_onnx
from compressor.running.pipeline import Pipeline
from compressor.stages import Distill, Quantize
from compressor.workload import Workload
from compressor.workloads import load

DATA = (torch.randn(64, 24), torch.arange(64) % 3)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of 24 numbers as an ONNX file of some 300 KiB."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 3)).eval()
    path = tmp_path_factory.mktemp("alone") / "model.onnx"
    workload = Workload.from_datasets(model, train=DATA, test=DATA)
    path.write_bytes(export_onnx(model, workload).onnx_bytes)
    return path


def test_the_command_measures_it_and_says_that_it_did_not_score(file: Path, tmp_path: Path) -> None:
    """Terminal, Markdown, page and JSON say so; no score, drop or percentage of accuracy stands anywhere."""
    out = tmp_path / "run"
    result = CliRunner().invoke(app, ["run", "int8", "-w", str(file), "--out", str(out)], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    told = " ".join(result.output.split())
    assert "NOT SCORED: there were no data" in told
    assert "not scored" in told
    for name in ("report.md", "report.html"):
        text = (out / name).read_text()
        assert "NOT SCORED" in text
        assert "points [" not in text
        assert " pt" not in text.replace(" pt;", "")
    report = json.loads((out / "report.json").read_text())
    chosen = report["steps"][1]["details"]["chosen_form"]
    assert chosen.startswith(("Dynamic", "WeightOnly", "Float16"))
    assert report["steps"][1]["measurement"]["size_bytes"] < 0.6 * file.stat().st_size
    assert report["steps"][1]["measurement"]["latency_ms"]["value"] > 0


def test_a_form_that_was_asked_for_stays(file: Path, tmp_path: Path) -> None:
    """weight_only is what one gets, within a budget that cannot look at a score."""
    from compressor.quantization.placement.forms import WeightOnly

    pipeline = Pipeline([Quantize(form=WeightOnly())], budget=Budget(not_slower=False))
    result = pipeline.run(load(str(file)), out=tmp_path / "run", progress=False)
    step = result.report.steps[1]
    assert step.kept
    assert step.parameters["form"] == "weight_only" or "weight_only" in str(step.parameters["form"])
    assert "not scored: there were no data" in step.reason


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        (lambda: Distill(epochs=1), r"distill needs data, and there are none; give some: -w model.onnx:data.npz"),
        (lambda: Quantize(form=static()), "calibrates ranges on data.*set form to dynamic, weight_only or float16"),
        (lambda: Quantize(rounding=gptq()), "decides rounding by data"),
    ],
)
def test_what_needs_data_is_refused(file: Path, stage, says: str) -> None:
    """Before any work, with both ways out."""
    with pytest.raises(StageError, match=says):
        Pipeline([stage()]).run(load(str(file)), progress=False)


def static():
    from compressor.quantization.placement.forms import Static

    return Static()


def gptq():
    from compressor.quantization.accuracy.gptq import GPTQ

    return GPTQ()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The path that was typed, and exit code 2."""
    result = CliRunner().invoke(app, ["run", "int8", "-w", str(tmp_path / "none.onnx"), "--out", str(tmp_path / "o")])
    assert result.exit_code == 2
    assert "none.onnx" in result.output
