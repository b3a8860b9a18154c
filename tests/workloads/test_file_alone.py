"""An ONNX file without data: forms that need none, sizes and times measured, and "not scored" in large letters."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from typer.testing import CliRunner

from compressor.budget import Budget
from compressor.cli.app import app
from compressor.errors import StageError
from compressor.files.export import export_onnx
from compressor.quantization.placement.forms import Float16
from compressor.report.view import summary
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


def in_half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with weights, inputs and outputs in float16."""
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return model


def test_the_command_measures_it_and_says_that_it_did_not_score(file: Path, tmp_path: Path) -> None:
    """Terminal, Markdown, page and JSON say so; no score, drop or percentage of accuracy stands anywhere."""
    out = tmp_path / "run"
    result = CliRunner().invoke(app, ["run", "int8", "-w", str(file), "--out", str(out)], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    told = " ".join(result.output.split())
    assert "NOT SCORED: there were no data" in told
    assert "measured on made-up inputs of 24 a sample; other sizes take other times" in told
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


def test_sizes_are_told_beside_those_of_the_file_as_it_was_given(file: Path, tmp_path: Path) -> None:
    """In half precision it is half as large as it was read: what ships is as large, and not called half of it."""
    half = in_half_precision(onnx.load(str(file)))
    path = tmp_path / "half.onnx"
    onnx.save(half, str(path))
    result = Pipeline([Quantize(form=Float16())]).run(load(str(path)), out=tmp_path / "run", progress=False)
    given, reference = path.stat().st_size, result.report.steps[0]
    assert reference.details["given_file"] == {"file": "half.onnx", "size_bytes": given}
    assert reference.measurement.size_bytes > 1.8 * given
    assert "than the given file (" in summary(result.report) or "as large as the given file (" in summary(result.report)
    (told,) = (text for text in result.report.warnings if "half.onnx" in text)
    assert f"{given:,}" in told
    assert told in " ".join(result.report.to_markdown().replace("\\", "").split())


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
