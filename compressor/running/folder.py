"""The folder of a run: what is finished is on disk, and the same command goes on from there.

run.json                  what was asked: stages, budget, seed, target, model, data, versions
stages/01-distill/        one stage: plan.json + weights.safetensors (or nothing, once quantized), model.onnx,
                          snapshots/, and outcome.json, written last
model.onnx, report.*      the result; manifest.json, which lists all of it, comes last
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from compressor.errors import CompressorError, RunFolderError, StorageError
from compressor.estimate import Estimate
from compressor.identity.workload import DATA
from compressor.kept_state import private_copy
from compressor.measuring.measure import Measurement
from compressor.report.record import Work
from compressor.running.changes import changes
from compressor.running.lock import FolderLock
from compressor.runtime import OnnxModule
from compressor.storage import (
    is_left_over,
    read_bytes,
    read_json,
    read_sealed,
    require_space,
    sha256,
    write_atomic,
    write_sealed,
)
from compressor.store.kept import Kept
from compressor.structure.checkpoint import PLAN_FILE, WEIGHTS_FILE, checkpoint_files, load_checkpoint
from compressor.structure.preparing.emptied_caches import empty_caches_
from compressor.trust.manifest import MANIFEST
from compressor.workload import Workload

MODEL_FILE = "model.onnx"
_ASKED, _MARKER, _STARTED = "run.json", "outcome.json", "key.txt"
_RESULTS = (MODEL_FILE, PLAN_FILE, WEIGHTS_FILE, MANIFEST, "report.json", "report.md", "report.html", "stages")
# Weights, examples and data are often drawn at random, and then other ones in every process.
_MADE_ANEW = "it is made anew"
_DRAWN = {"model", "example_inputs", *DATA}
_OUTCOME_KEYS = ("seconds", "measurement", "versus_base", "drop", "details", "plan", "whole_plan")


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

    `key` identifies how it came about: equal keys mean equal models. `origin` is the model that the plan leads from
    where that is a student, None for the workload's.
    """

    model: nn.Module
    onnx_bytes: bytes
    plan: list[dict[str, Any]]
    key: str
    outcome: Outcome
    origin: nn.Module | None = None

    def next_key(self, stage: str, seed: int) -> str:
        """The key of what the stage that is known by `stage` makes of this state."""
        return sha256(json.dumps([self.key, stage, seed]).encode())

    def facts(self) -> dict[str, Any]:
        """What is kept of it beside its files."""
        outcome = self.outcome
        return {
            "seconds": outcome.seconds,
            "measurement": outcome.measurement.to_json(),
            "versus_base": vars(outcome.versus_base),
            "drop": vars(outcome.drop) if outcome.drop else None,
            "details": outcome.details,
            "plan": outcome.plan,
            "whole_plan": self.plan,
        }

    def files(self) -> dict[str, bytes]:
        """{name: content} of what is kept of it; the checkpoint where torch can still hold it."""
        contents = {MODEL_FILE: self.onnx_bytes}
        if not isinstance(self.model, OnnxModule):
            contents |= checkpoint_files(self.model, self.plan)
        return contents


class RunFolder:
    """The files of one run in `path`, which is made where it is missing.

    Nothing there is replaced or removed but what runs write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FolderLock(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder against a second writer.

        Raises RunFolderError where there is one, where the folder cannot be made, and where it holds files that a run
        would replace, and that none has written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:  # the latter for a name with a zero in it
            why = getattr(error, "strerror", None) or error
            raise RunFolderError(f"{self.path} cannot be a folder: {why}; give another one") from error
        with ExitStack() as held:
            with _usable(self.path):
                held.enter_context(self._lock)
                self._refuse_files_of_others()
                self._sweep()
            yield

    def begin(self, asked: dict[str, Any], *, accept_changes: bool) -> None:
        """Notes what is asked. Raises RunFolderError, key by key, where the folder was begun for something else."""
        path = self.path / _ASKED
        # Through JSON and back: tuples become lists, as they will be when read again.
        asked = json.loads(json.dumps(asked))
        if path.exists() and not accept_changes:
            way_out = (
                "give another folder, or accept the changes (--accept-changes, accept_changes=True): finished stages "
                "that they do not touch are kept"
            )
            if "sha256" not in read_json(path):
                raise RunFolderError(f"{path} is of a former version, which did not look at every input; {way_out}")
            lines = list(changes(read_sealed(path, way_out=way_out), asked))
            if any(line.partition(":")[0] in _DRAWN for line in lines):
                drawn = ", ".join(sorted({line.partition(":")[0] for line in lines} & _DRAWN))
                way_out += (
                    f". Where nobody changed {drawn}, it is drawn at random anew in every process: draw it from a "
                    "fixed seed, as after torch.manual_seed(0). What is drawn is the same again only then"
                )
            if lines:
                told = "\n".join(f"  {line}" for line in lines)
                raise RunFolderError(f"{self.path} holds a run of something else:\n{told}\n{way_out}")
        write_sealed(path, asked)

    def stage(self, index: int, name: str) -> Path:
        """The folder of the stage number `index`."""
        return self.path / "stages" / f"{index:02d}-{name}"

    def snapshots(self, folder: Path, key: str) -> Path:
        """Where the stage in `folder` keeps what lets it go on after a kill: a place for this `key` alone."""
        return folder / "snapshots" / key[:16]

    def load(self, folder: Path, key: str, workload: Workload, origin: nn.Module | None = None) -> State | None:
        """The finished stage in `folder`, if it is the one that `key` means; another's files are cleared away.

        Its plan leads from `origin`, or from the workload's model.

        Raises RunFolderError where its files are not as they were written, or written in another layout than this, and
        where a folder of that name holds files that a stage would replace, and that none has written.
        """
        with _usable(folder):
            self._refuse_stage_of_others(folder)
            try:
                if _key_in(folder / _MARKER) == key:
                    return self._finished(folder, workload, origin)
            except StorageError as error:
                # Not what a budget may pass over by leaving the stage out.
                raise RunFolderError(str(error)) from error
            started = folder / _STARTED
            before = started.read_text(encoding="utf-8", errors="replace") if started.is_file() else key
            if before != key:
                self._clear(folder, before)
            write_atomic(started, key)
        return None

    def _finished(self, folder: Path, workload: Workload, origin: nn.Module | None) -> State:
        marker, way_out = folder / _MARKER, f"delete {folder} to run the stage again"
        saved = read_sealed(marker, way_out=way_out)
        outcome = _outcome(saved, marker)
        contents = {}
        for name, digest in saved["files"].items():
            contents[name] = read_bytes(folder / name, way_out=way_out)
            if sha256(contents[name]) != digest:
                raise RunFolderError(f"{folder / name} is not the file that was written; {way_out}")
        return _state(saved, contents, outcome, folder, workload, origin=origin)

    def require_space(self, folder: Path, model: nn.Module) -> None:
        """Raises WriteError where the disk has no room for `model` as an ONNX file and as a checkpoint."""
        weights = {id(tensor): tensor.nbytes for tensor in model.parameters()}
        require_space(folder / MODEL_FILE, 2 * sum(weights.values()))

    def save(self, folder: Path, state: State, contents: dict[str, bytes]) -> None:
        """Puts a finished stage with its files on disk; the marker that says so comes last."""
        self.write(folder, contents)
        self._finish(folder, state, contents)

    def adopt(
        self,
        folder: Path,
        key: str,
        kept: Kept,
        workload: Workload,
        origin: nn.Module | None,
        *,
        anew: Callable[[bytes, Outcome], Outcome],
    ) -> State:
        """The stage `key` from the store's files, put on disk as `save` does; `anew` brings its times up to date.

        Raises StorageError where they are not what a stage leaves.
        """
        contents = kept.contents
        saved = {**kept.facts, "key": key}
        if MODEL_FILE not in contents or not isinstance(saved.get("whole_plan"), list):
            raise StorageError(f"what is kept of the stage is not laid out as this version writes it; {_MADE_ANEW}")
        try:
            outcome = _outcome(saved, folder / _MARKER)
        except RunFolderError as error:  # it names the folder, where nothing was written yet
            raise StorageError(
                f"what is kept of the stage cannot be used ({error.__cause__ or error}); {_MADE_ANEW}"
            ) from error
        self.write(folder, contents)
        state = _state(saved, contents, anew(contents[MODEL_FILE], outcome), folder, workload, origin=origin)
        self._finish(folder, state, contents)
        return state

    def _finish(self, folder: Path, state: State, contents: Mapping[str, bytes]) -> None:
        files = {name: sha256(content) for name, content in contents.items()}
        write_sealed(folder / _MARKER, {"key": state.key, "files": files, **state.facts()})
        self._drop_snapshots(folder, state.key)

    def write(self, folder: Path, contents: dict[str, bytes]) -> None:
        """Puts files into `folder`, all or, where the disk has no room for them together, none.

        Raises RunFolderError where the folder that is held was moved away meanwhile, WriteError without room.
        """
        if not self._lock.is_held():
            raise RunFolderError(
                f"{self.path} was moved, deleted or replaced while it was being written; give a folder that stays"
            )
        require_space(folder / next(iter(contents)), sum(map(len, contents.values())))
        for name, content in contents.items():
            write_atomic(folder / name, content)

    def _refuse_files_of_others(self) -> None:
        asked = self.path / _ASKED
        if asked.exists():
            begun = read_json(asked, way_out="move it away, or give another folder")
            if isinstance(begun, dict) and {"stages", "seed", "versions"} <= begun.keys():
                return
            raise RunFolderError(f"{asked} is not what a run writes; move it away, or give another folder")
        found = [name for name in _RESULTS if (self.path / name).exists() or (self.path / name).is_symlink()]
        if found:
            raise RunFolderError(
                f"{self.path} holds {', '.join(found)}, which no run wrote there and this one would replace; move "
                f"{'it' if len(found) == 1 else 'them'} away, or give another folder"
            )

    def _refuse_stage_of_others(self, folder: Path) -> None:
        # Stages note that they have begun before anything else; those of former versions, that they are finished.
        if os.path.lexists(folder / _STARTED):
            return
        with suppress(StorageError):
            if isinstance(_key_in(folder / _MARKER), str):
                return
        found = [name for name in (_MARKER, MODEL_FILE, PLAN_FILE, WEIGHTS_FILE) if os.path.lexists(folder / name)]
        if found:
            raise RunFolderError(
                f"{folder} holds {', '.join(found)}, which no run wrote there and this one would replace; move that "
                "folder away, or give another one"
            )

    def _sweep(self) -> None:
        """Removes what a killed writer was in the middle of; nobody else writes while the lock is held."""
        stages = self.path / "stages"
        for folder in (self.path, *stages.glob("[0-9][0-9]-*"), *stages.glob("[0-9][0-9]-*/snapshots/*")):
            if folder.is_dir() and not folder.is_symlink():
                for path in filter(is_left_over, list(folder.iterdir())):
                    path.unlink()

    def _clear(self, folder: Path, key: str) -> None:
        """Removes what the stage known by `key` left in `folder`."""
        for name in (_MARKER, MODEL_FILE, WEIGHTS_FILE, PLAN_FILE, _STARTED):
            if (folder / name).is_file() or (folder / name).is_symlink():
                (folder / name).unlink()
        self._drop_snapshots(folder, key)

    def _drop_snapshots(self, folder: Path, key: str) -> None:
        if re.fullmatch("[0-9a-f]{64}", key):
            shutil.rmtree(self.snapshots(folder, key), ignore_errors=True)
            with suppress(OSError):  # something of somebody else's is in it
                (folder / "snapshots").rmdir()


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Raises RunFolderError where the system does not let this process read or change what is in `folder`."""
    try:
        yield
    except CompressorError:  # that files cannot be written is one, and an OSError too
        raise
    except OSError as error:
        raise RunFolderError(
            f"{error.filename or folder} cannot be used: {error.strerror or error}; see to the rights to read and "
            "write it, or give another folder"
        ) from error


def versions() -> dict[str, str]:
    """The versions that can change what a stage gives."""
    packages = ("torch", "torch-pruning", "onnx", "onnxruntime", "numpy", "torch-compressor")
    return {name: version(name) for name in packages} | {"python": sys.version.split()[0]}


def _state(
    saved: dict[str, Any],
    contents: Mapping[str, bytes],
    outcome: Outcome,
    folder: Path,
    workload: Workload,
    *,
    origin: nn.Module | None,
) -> State:
    """The state whose files are in `folder`."""
    began = workload.model if origin is None else origin
    model = (
        load_checkpoint(folder, lambda: empty_caches_(private_copy(began), workload.example_inputs))
        if WEIGHTS_FILE in contents
        else OnnxModule(contents[MODEL_FILE])
    )
    return State(
        model=model,
        onnx_bytes=contents[MODEL_FILE],
        plan=saved["whole_plan"],
        key=saved["key"],
        outcome=outcome,
        origin=origin,
    )


def _key_in(marker: Path) -> Any:
    saved = read_json(marker) if marker.exists() else None
    return saved.get("key") if isinstance(saved, dict) else None


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
