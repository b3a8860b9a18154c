"""TensorBoard and MLflow get what a run tells: held against the real packages where they are installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from compressor.errors import WrongUseError
from compressor.progress import sinks
from compressor.progress.events import EpochFinished, Event, RunFinished, RunStarted, StageFinished
from compressor.progress.sinks import MLflow, TensorBoard

EVENTS: tuple[Event, ...] = (
    RunStarted(workload="mine", stages=("distill",), seed=3, out="runs/mine"),
    StageFinished(
        number=0, stage="reference", kept=True, reason="", seconds=1.0,
        score=0.75, latency_ms=2.0, speedup=1.0, size_bytes=4096,
    ),
    EpochFinished(training="distill", epoch=0, loss=1.5, score=0.5, learning_rate=0.25, seconds=1.0),
    EpochFinished(training="distill", epoch=1, loss=0.5, score=0.625, learning_rate=0.125, seconds=1.0),
    RunFinished(artifact="model.onnx", budget_met=True, score=0.625, latency_ms=1.0, speedup=2.0, size_bytes=2048),
)  # fmt: skip


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is an extra, and not installed here")
@pytest.mark.filterwarnings("ignore")  # other people's packages warn of each other
def test_tensorboard(tmp_path: Path) -> None:
    """The file that was written says the same numbers when TensorBoard reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)
    for event in EVENTS:
        board(event)
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    losses = [(each.step, each.value) for each in read.Scalars("distill/loss")]
    assert losses == [(0, 1.5), (1, 0.5)]
    assert [each.value for each in read.Scalars("final/speedup")] == [2.0]
    assert [each.value for each in read.Scalars("stages/size_bytes")] == [4096.0]


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is an extra, and not installed here")
@pytest.mark.filterwarnings("ignore")  # other people's packages warn of each other
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs of the package are two runs there, finished, with parameters and every step."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    uri = tmp_path.as_uri()
    sink = MLflow("mine", uri=uri)
    for event in (*EVENTS, *EVENTS):
        sink(event)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("mine")
    found = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in found] == ["FINISHED", "FINISHED"]
    run = found[0]
    assert run.data.params == {"workload": "mine", "stages": "distill", "seed": "3", "out": "runs/mine"}
    history = client.get_metric_history(run.info.run_id, "distill/loss")
    assert [(each.step, each.value) for each in history] == [(0, 1.5), (1, 0.5)]
    assert run.data.metrics["final/speedup"] == 2.0


@pytest.mark.parametrize(("sink", "extra"), [(TensorBoard, "tensorboard"), (MLflow, "mlflow")])
def test_what_is_missing_is_named(sink: type, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra: what to install."""

    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(sinks, "import_module", absent)
    with pytest.raises(WrongUseError, match=rf'pip install "torch-compressor\[{extra}\]"'):
        sink("somewhere")
