"""Ready listeners: what a run tells, written down by TensorBoard or MLflow, each an extra of the package."""

import math
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from compressor.errors import WrongUseError
from compressor.progress.events import EpochFinished, Event, RunFinished, RunStarted, StageFinished

_MEASURED = ("score", "latency_ms", "speedup", "size_bytes")


def numbers_of(event: Event) -> Iterator[tuple[str, float, int]]:
    """(name, value, step) of every finite number that `event` tells.

    Those of an epoch are `<training>/loss`, `score` and `learning_rate` by epoch; those of a stage `stages/score`,
    `latency_ms`, `speedup`, `size_bytes` and `kept` by its number, 0 for the reference; those of a run `final/...`.
    """
    found: dict[str, Any] = {}
    step = 0
    if isinstance(event, EpochFinished):
        step = event.epoch
        found = {f"{event.training}/{key}": getattr(event, key) for key in ("loss", "score", "learning_rate")}
    elif isinstance(event, StageFinished):
        step = event.number
        found = {f"stages/{key}": getattr(event, key) for key in (*_MEASURED, "kept", "seconds")}
    elif isinstance(event, RunFinished):
        found = {f"final/{key}": getattr(event, key) for key in (*_MEASURED, "budget_met")}
    for name, value in found.items():
        if value is not None and math.isfinite(value):
            yield name, float(value), step


class TensorBoard:
    """Writes the numbers of runs into `folder`, for `tensorboard --logdir folder`.

    Needs the extra `tensorboard`: `pip install "torch-compressor[tensorboard]"`. Raises WrongUseError without it.
    """

    def __init__(self, folder: Path | str) -> None:
        module = _needed("torch.utils.tensorboard", "tensorboard")
        self._writer: Any = module.SummaryWriter(str(folder))

    def __call__(self, event: Event) -> None:
        """Writes what `event` tells; the end of a run is on disk when this returns."""
        if isinstance(event, RunStarted):
            self._writer.add_text("run", f"{event.workload}: {', '.join(event.stages)}; seed {event.seed}", 0)
        for name, value, step in numbers_of(event):
            self._writer.add_scalar(name, value, step)
        if isinstance(event, RunFinished):
            self._writer.flush()


class MLflow:
    """Writes every run of the package as a run of MLflow, in `experiment`, to where MLflow is told to, or to `uri`.

    Needs the extra `mlflow`: `pip install "torch-compressor[mlflow]"`. Raises WrongUseError without it.
    """

    def __init__(self, experiment: str = "compressor", *, uri: str | None = None) -> None:
        module = _needed("mlflow", "mlflow")
        client: Any = module.MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        self._client, self._run = client, ""
        self._experiment: str = found.experiment_id if found else client.create_experiment(experiment)

    def __call__(self, event: Event) -> None:
        """Writes what `event` tells."""
        if isinstance(event, RunStarted):
            self._run = self._client.create_run(self._experiment, run_name=event.workload).info.run_id
            facts = {
                "workload": event.workload,
                "stages": ", ".join(event.stages),
                "seed": event.seed,
                "out": event.out,
            }
            for name, value in facts.items():
                self._client.log_param(self._run, name, value)
        if not self._run:
            return
        for name, value, step in numbers_of(event):
            self._client.log_metric(self._run, name, value, step=step)
        if isinstance(event, RunFinished):
            self._client.set_terminated(self._run)
            self._run = ""


def _needed(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise WrongUseError(
            f'{extra} is not installed ({error}); pip install "torch-compressor[{extra}]" brings it along'
        ) from error
