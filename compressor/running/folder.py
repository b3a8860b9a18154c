"""The folder of a run: what is finished is on disk, and the same command goes on from there.

run.json                  what was asked: stages, budget, seed, target, model, data, versions
stages/01-distill/        one stage: plan.json + weights.safetensors (or nothing, once quantized), model.onnx,
                          snapshots/, and outcome.json, written last
model.onnx, report.*      the result
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import nn

from compressor.batches import Inputs
from compressor.errors import RunFolderError
from compressor.estimate import Estimate
from compressor.kept_state import private_copy
from compressor.measuring.measure import Measurement
from compressor.report.record import Work
from compressor.runtime import OnnxModule
from compressor.storage import read_json, sha256, write_atomic, write_json
from compressor.structure.checkpoint import load_checkpoint, save_checkpoint
from compressor.workload import Workload, first_batches, input_tensors

_OUTCOME_KEYS = ("onnx_sha256", "seconds", "measurement", "versus_base", "drop", "details", "plan", "whole_plan")


@dataclass(frozen=True, kw_only=True)
class Outcome(Work):
    """What applying one stage gave: everything that took time, so that nothing is done twice.

    `versus_base` is the speed-up over the model before the stage, `plan` what the stage added to the structure plan.
    """

    measurement: Measurement
    versus_base: Estimate
    plan: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class State:
    """A model on its way: as torch sees it, as a file, the structure plan that leads to it, and the last work on it.

    `key` identifies how it came about: equal keys mean equal models.
    """

    model: nn.Module
    onnx_bytes: bytes
    plan: list[dict[str, Any]]
    key: str
    outcome: Outcome

    def next_key(self, stage: dict[str, Any], seed: int) -> str:
        """The key of what `stage` makes of this state."""
        return sha256(json.dumps([self.key, stage, seed], sort_keys=True).encode())


class RunFolder:
    """The files of one run in `path`, which is made where it is missing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder against a second writer. Raises RunFolderError where there is one."""
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunFolderError(
                f"another process is writing to {self.path}; wait for it to end or give another folder"
            ) from error
        try:
            # What a killed writer was in the middle of; nobody else writes while the lock is held.
            for part in self.path.rglob(".*.tmp"):
                part.unlink()
            yield
        finally:
            lock.release()

    def begin(self, asked: dict[str, Any], *, accept_changes: bool) -> None:
        """Notes what is asked. Raises RunFolderError, key by key, where the folder was begun for something else."""
        path = self.path / "run.json"
        # Through JSON and back: tuples become lists, as they will be when read again.
        asked = json.loads(json.dumps(asked))
        if path.exists() and not accept_changes:
            before = read_json(path)
            changed = sorted(key for key in {*before, *asked} if before.get(key) != asked.get(key))
            if changed:
                lines = "\n".join(
                    f"  {key}: was {_short(before.get(key))}, is {_short(asked.get(key))}" for key in changed
                )
                raise RunFolderError(
                    f"{self.path} holds a run of something else:\n{lines}\n"
                    "give another folder, or accept the changes (--accept-changes, accept_changes=True): "
                    "finished stages that they do not touch are kept"
                )
        write_json(path, asked)

    def stage(self, index: int, name: str) -> Path:
        """The folder of the stage number `index`."""
        return self.path / "stages" / f"{index:02d}-{name}"

    def load(self, folder: Path, key: str, workload: Workload) -> State | None:
        """The finished stage in `folder`, if it is the one that `key` means; another's files are cleared away.

        Raises RunFolderError where its files are not as they were written, or written in another layout than this.
        """
        marker = folder / "outcome.json"
        saved = read_json(marker) if marker.exists() else None
        started = folder / "key.txt"
        if saved is None or saved.get("key") != key:
            if started.exists() and started.read_text(encoding="utf-8") != key:
                shutil.rmtree(folder)
            write_atomic(started, key)
            return None
        outcome = _outcome(saved, marker)
        onnx_bytes = (folder / "model.onnx").read_bytes()
        if sha256(onnx_bytes) != saved["onnx_sha256"]:
            raise RunFolderError(
                f"{folder / 'model.onnx'} is not the file that was written; delete {folder} to run the stage again"
            )
        model = (
            load_checkpoint(folder, lambda: private_copy(workload.model))
            if (folder / "weights.safetensors").exists()
            else OnnxModule(onnx_bytes)
        )
        return State(model=model, onnx_bytes=onnx_bytes, plan=saved["whole_plan"], key=key, outcome=outcome)

    def save(self, folder: Path, state: State) -> None:
        """Puts a finished stage on disk; the marker that says so comes last."""
        outcome = state.outcome
        write_atomic(folder / "model.onnx", state.onnx_bytes)
        if not isinstance(state.model, OnnxModule):
            save_checkpoint(folder, state.model, state.plan)
        write_json(
            folder / "outcome.json",
            {
                "key": state.key,
                "onnx_sha256": sha256(state.onnx_bytes),
                "seconds": outcome.seconds,
                "measurement": outcome.measurement.to_json(),
                "versus_base": vars(outcome.versus_base),
                "drop": vars(outcome.drop) if outcome.drop else None,
                "details": outcome.details,
                "plan": outcome.plan,
                "whole_plan": state.plan,
            },
        )
        shutil.rmtree(folder / "snapshots", ignore_errors=True)


def fingerprint_model(model: nn.Module) -> str:
    """A digest of every weight and buffer by name."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(dtype=_bytes_of(tensor)).numpy().tobytes())
    return digest.hexdigest()


def fingerprint_data(workload: Workload) -> str:
    """A digest of the first batches of the sets that are not shuffled: a change of data shows there."""
    digest = hashlib.sha256()
    for data in (workload.calibration, workload.validation, workload.test):
        for inputs, targets in first_batches(data, 2):
            _digest_inputs(digest, inputs)
            digest.update(targets.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """The versions that can change what a stage gives."""
    return {name: version(name) for name in ("torch", "torch-pruning", "onnx", "onnxruntime", "torch-compressor")}


def _outcome(saved: dict[str, Any], path: Path) -> Outcome:
    missing = [name for name in _OUTCOME_KEYS if name not in saved]
    if missing:
        raise _other_layout(path, f"without {', '.join(missing)}")
    try:
        return Outcome(
            seconds=saved["seconds"],
            measurement=Measurement.from_json(saved["measurement"]),
            versus_base=Estimate(**saved["versus_base"]),
            drop=Estimate(**saved["drop"]) if saved["drop"] else None,
            details=saved["details"],
            plan=saved["plan"],
        )
    except (TypeError, ValueError) as error:
        raise _other_layout(path, str(error)) from error


def _other_layout(path: Path, why: str) -> RunFolderError:
    return RunFolderError(
        f"{path} is not laid out as this version writes it: {why}; delete {path.parent} to run the stage again"
    )


def _digest_inputs(digest: Any, inputs: Inputs) -> None:
    for tensor in input_tensors(inputs):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())


def _bytes_of(tensor: Any) -> Any:
    import torch

    # numpy has no bfloat16: every tensor is hashed as its bytes.
    return tensor.dtype if tensor.dtype == torch.bool else torch.uint8


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
