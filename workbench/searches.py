"""Runs of recipes that take no time, for searches: files written by hand, and scores that follow from the recipe."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from compressor.errors import StageError
from compressor.estimate import Estimate
from compressor.identity.workload import content
from compressor.measuring.measure import Measurement
from compressor.measuring.timing import Timing
from compressor.report.record import Step, describe_workload
from compressor.report.report import Report
from compressor.running.pipeline import Pipeline
from compressor.running.session import Worked
from compressor.stage import stage_name
from workbench.two_layers import export

SPACE = """
name: space
stages:
  - prune_channels: {remove: {sweep: [0.2, 0.4, 0.6, 0.8]}}
  - distill: {epochs: 9, tail_epochs: 0}
  - sweep: [null, quantize]
"""


# What was exported, by what the model holds: no test asks how.
_exported: dict[str, bytes] = {}


def exactly(value: float) -> Estimate:
    return Estimate(value, value, value)


@dataclass
class FakeRuns:
    """Takes the place of Pipeline.run: what removes more is faster and smaller, and what trains longer scores better.

    `asked` are the names of the folders in order, and `tests` the numbers of test samples that runs were shown.
    `stop_after` ends the run after so many as Ctrl-C would, in its middle; `broken` is the part of what is removed at
    which stages fail.
    """

    asked: list[str] = field(default_factory=list)
    workloads: list[Any] = field(default_factory=list)
    stop_after: int | None = None
    broken: float = 2.0

    def run(self, pipeline: Pipeline, workload: Any, *, out: Path, seed: int, session: Any, **_: Any) -> Any:
        del seed
        remove = next((s.remove for s in pipeline.stages if stage_name(s) == "prune_channels"), 0.0)
        epochs = next((s.epochs for s in pipeline.stages if stage_name(s) == "distill"), 9)
        integer = any(stage_name(s) == "quantize" for s in pipeline.stages)
        self.asked.append(Path(out).name)
        self.workloads.append(workload)
        if self.stop_after is not None and len(self.asked) > self.stop_after:
            raise KeyboardInterrupt
        if remove >= self.broken:
            error = StageError("no channel is left")
            error.stage, error.stage_number = "prune_channels", 1
            raise error
        self._write(Path(out) / "stages" / "00-reference", workload, 1.0)
        self._write(Path(out), workload, 1.0 + remove + integer + epochs / 100)
        drop = round(remove**2 * (1 - epochs / 12) + 0.002 * integer, 4)
        measurement = Measurement(
            score=exactly(0.9 - drop),
            parameters=10,
            nonzero_parameters=10,
            macs=10,
            size_bytes=round(1000 * (1 - remove) * (0.25 if integer else 1.0)),
            compressed_bytes=100,
            latency_ms=exactly((1 - remove) * (0.5 if integer else 1.0)),
            speedup=exactly(1 / ((1 - remove) * (0.5 if integer else 1.0))),
        )
        worked = Worked(run="a", stage="distill", key=f"{remove} {epochs}", how="made", seconds=float(epochs))
        known = {(one.key) for one in session.worked}
        session.tell(worked if worked.key not in known else Worked(**{**vars(worked), "how": "store"}))
        one = exactly(1.0)
        whole = Measurement(**{**vars(measurement), "size_bytes": 1000, "speedup": one, "latency_ms": one})
        score = {"score": vars(exactly(0.9 - drop)), "drop": vars(exactly(drop))}
        report = Report(
            workload=describe_workload(workload),
            environment={},
            steps=(
                Step(stage="reference", kept=True, seconds=1.0, measurement=whole),
                Step(stage="distill", kept=True, seconds=float(epochs), measurement=measurement, validation=score),
            ),
            final=1,
        )
        return SimpleNamespace(report=report)

    @staticmethod
    def _write(folder: Path, workload: Any, scale: float) -> None:
        import onnx

        folder.mkdir(parents=True, exist_ok=True)
        known = str(content(workload.model))
        if known not in _exported:
            _exported[known] = export(workload.model, workload, memory=None).onnx_bytes
        # Another file for every other run: a byte in the producer's name.
        model = onnx.load_from_string(_exported[known])
        model.producer_name = f"scale {scale}"
        (folder / "model.onnx").write_bytes(model.SerializeToString())


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch) -> FakeRuns:
    """Runs of recipes that take no time."""
    torch.manual_seed(0)
    runs = FakeRuns()

    def run(self: Pipeline, workload: Any, **asked: Any) -> Any:
        return runs.run(self, workload, **asked)

    def take(*_: Any, **__: Any) -> Timing:
        return Timing(reference_ms=exactly(1.0), candidate_ms=exactly(0.5), speedup=exactly(2.0))

    monkeypatch.setattr(Pipeline, "run", run)
    monkeypatch.setattr("compressor.comparing.timing.time_interleaved", take)
    return runs
