"""Folders of runs as the version before laid them out: continued where they are valid, else refused with the reason."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from compressor import Effect, Pipeline, Target
from compressor.errors import RunFolderError
from compressor.files.export import export_onnx
from compressor.running import applying
from compressor.running.folder import fingerprint_data, fingerprint_model, versions
from compressor.storage import read_json, sha256, write_json
from compressor.structure.checkpoint import save_checkpoint

SCORE, CALL_MS = {"value": 0.5, "low": 0.4, "high": 0.6}, {"value": 0.2, "low": 0.1, "high": 0.3}
ONE = {"value": 1.0, "low": 1.0, "high": 1.0}
DROP = {"value": 0.25, "low": 0.0, "high": 0.5}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Multiplies the last layer's weights."""

    effect: ClassVar[Effect] = Effect.VALUES
    factor: float = 0.5
    layer: str = "linear"

    def apply(self, model: nn.Module, workload, context) -> nn.Module:
        raise AssertionError("applied again, though it is finished on disk")


def measured(onnx_bytes: bytes) -> dict[str, Any]:
    counts = {"parameters": 10, "nonzero_parameters": 9, "macs": 100}
    sizes = {"size_bytes": len(onnx_bytes), "compressed_bytes": 50}
    return {"score": SCORE, **counts, **sizes, "latency_ms": CALL_MS, "speedup": ONE}


def put_stage(folder: Path, key: str, model: nn.Module, workload, *, drop: Any, details: dict[str, Any]) -> None:
    """A finished stage as it has always been written: key, file, checkpoint, and outcome.json."""
    onnx_bytes = export_onnx(model, workload).onnx_bytes
    folder.mkdir(parents=True)
    (folder / "key.txt").write_text(key, encoding="utf-8")
    (folder / "model.onnx").write_bytes(onnx_bytes)
    save_checkpoint(folder, model, [])
    outcome = {
        "key": key,
        "onnx_sha256": sha256(onnx_bytes),
        "seconds": 7.0,
        "measurement": measured(onnx_bytes),
        "versus_base": ONE,
        "drop": drop,
        "details": details,
        "plan": [],
        "whole_plan": [],
    }
    write_json(folder / "outcome.json", outcome)


@pytest.fixture
def old_folder(trained_workload, tmp_path) -> Path:
    """A finished run of Scale, by hand, with the keys computed as the version before did."""
    workload = trained_workload
    target = {"batch_size": 1, "threads": 1, "isa": Target().isa.value}
    given = {
        "target": target,
        "model": fingerprint_model(workload.model),
        "data": fingerprint_data(workload),
        "versions": versions(),
    }
    stage = {"scale": {"factor": 0.5, "layer": "linear"}}
    asked = {"stages": [stage], "budget": None, "seed": 3, "workload": "tiny", **given}
    write_json(tmp_path / "run.json", asked)
    reference_key = sha256(repr(sorted(given.items())).encode())
    export = {"export": {"exporter": "dynamo", "opset": 20, "notes": []}}
    stages = tmp_path / "stages"
    put_stage(stages / "00-reference", reference_key, workload.model, workload, drop=None, details=export)
    # Seed 3, and 1000 for being the first.
    stage_key = sha256(json.dumps([reference_key, stage, 1003], sort_keys=True).encode())
    scaled = copy.deepcopy(workload.model)
    with torch.no_grad():
        scaled.linear.weight.mul_(0.5)
    put_stage(stages / "01-scale", stage_key, scaled, workload, drop=DROP, details={"told": [1], **export})
    return tmp_path


@pytest.fixture
def no_work(monkeypatch):
    """Neither export nor timing nor measuring may happen."""

    def refuse(*_, **__):
        raise AssertionError("worked again, though all is finished on disk")

    for name in ("export_onnx", "measure", "speedup_over"):
        monkeypatch.setattr(applying, name, refuse)


def test_a_run_of_the_version_before_is_taken_from_disk(trained_workload, old_folder, no_work):
    """Every stage is found by its key, nothing is worked again, and the report tells what stands on disk."""
    result = Pipeline([Scale()]).run(trained_workload, out=old_folder, seed=3, progress=False)
    assert (old_folder / "model.onnx").read_bytes() == (old_folder / "stages/01-scale/model.onnx").read_bytes()
    assert torch.equal(result.model.linear.weight, trained_workload.model.linear.weight * 0.5)
    reference, scaled = read_json(old_folder / "report.json")["steps"]
    assert list(reference) == list(scaled)
    assert (scaled["seconds"], scaled["drop"]) == (7.0, DROP)
    assert scaled["measurement"] == measured((old_folder / "model.onnx").read_bytes())
    assert list(scaled["details"]) == ["told", "export", "versus_base"]
    assert scaled["details"]["versus_base"] == ONE
    assert reference["drop"] is None
    assert list(reference["details"]) == ["export"]


def test_what_is_written_now_has_the_layout_of_before(trained_workload, old_folder, monkeypatch):
    """A stage that is worked again writes outcome.json with the same keys in the same order, under the same key."""
    before = read_json(old_folder / "stages/01-scale/outcome.json")
    (old_folder / "stages/01-scale/outcome.json").unlink()
    monkeypatch.setattr(Scale, "apply", lambda _self, model, _workload, _context: model)
    Pipeline([Scale()]).run(trained_workload, out=old_folder, seed=3, progress=False)
    after = read_json(old_folder / "stages/01-scale/outcome.json")
    assert list(after) == list(before)
    assert list(after["measurement"]) == list(before["measurement"])
    assert after["key"] == before["key"]


@pytest.mark.parametrize("name", ["versus_base", "whole_plan"])
def test_another_layout_is_refused_with_the_reason(trained_workload, old_folder, no_work, name):
    """An outcome.json that lacks a key is not read around: file, key and way out are named."""
    path = old_folder / "stages/01-scale/outcome.json"
    outcome = read_json(path)
    del outcome[name]
    write_json(path, outcome)
    with pytest.raises(RunFolderError, match=rf"outcome\.json .*without {name}; delete .*01-scale to run the stage"):
        Pipeline([Scale()]).run(trained_workload, out=old_folder, seed=3, progress=False)


def test_a_measurement_of_another_layout_is_refused(trained_workload, old_folder, no_work):
    """A measurement without its macs is named with the file that it stands in."""
    path = old_folder / "stages/01-scale/outcome.json"
    outcome = read_json(path)
    del outcome["measurement"]["macs"]
    write_json(path, outcome)
    with pytest.raises(RunFolderError, match=r"outcome\.json .*macs.*delete"):
        Pipeline([Scale()]).run(trained_workload, out=old_folder, seed=3, progress=False)


def test_a_folder_of_other_versions_is_refused(trained_workload, old_folder, no_work):
    """What another torch made is not continued: the key that differs is named with both values."""
    asked = read_json(old_folder / "run.json")
    asked["versions"]["torch"] = "1.0"
    write_json(old_folder / "run.json", asked)
    with pytest.raises(RunFolderError, match=r"versions: was .*1\.0"):
        Pipeline([Scale()]).run(trained_workload, out=old_folder, seed=3, progress=False)
