"""The runs of the studio: begun from the draft, watched, paused, gone on with, and all of them beside each other."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compressor.errors import CompressorError, StorageError
from compressor.measuring.measure import Measurement
from compressor.measuring.timing import in_time_of
from compressor.recipe.recipe import Recipe
from compressor.report.charts import LineChart, line_chart
from compressor.report.numbers import claim, duration, printable, size, times
from compressor.report.record import RunRecord
from compressor.report.scatter import Panel, Point, panel
from compressor.storage import read_json, write_atomic
from compressor.studio.events import Broadcast
from compressor.studio.outcomes.program import program
from compressor.studio.outcomes.stages import beside, stage_by_stage

_NAME = re.compile(r"run-\d{3,6}")
# What was asked for, as data and as a program, lies beside a run's folder.
RECIPE, PROGRAM = "recipe.yaml", "run.py"
# What may be taken away, and as what.
FILES = {
    RECIPE: "application/yaml",
    PROGRAM: "text/x-python; charset=utf-8",
    "model.onnx": "application/octet-stream",
    "plan.json": "application/json",
    "weights.safetensors": "application/octet-stream",
    "report.html": "text/html; charset=utf-8",
    "report.json": "application/json",
    "report.md": "text/markdown; charset=utf-8",
}
# How much of what a failed run's process wrote is shown.
_LOG_LINES, _LOG_BYTES = 12, 4000
_WORKER = "compressor.studio.worker"
_TRAININGS = ("distill", "fine_tune")


class RunRefusedError(Exception):
    """A run cannot be begun, paused or gone on with as things stand."""


@dataclass(kw_only=True)
class _Going:
    """A run whose process is there, and what it has told."""

    process: "subprocess.Popen[str]"
    told: list[dict[str, Any]] = field(default_factory=list)
    paused: bool = False


class Runs:
    """The runs of `workload` in the folder `out`, one at a time; pages are told by `events`.

    `up` says that high scores are good.
    """

    def __init__(self, workload: str, out: Path, events: Broadcast, *, up: bool = True) -> None:
        self._workload, self._out, self._events, self._up = workload, out, events, up
        self._lock = threading.Lock()
        self._going: dict[str, _Going] = {}
        self._told: dict[str, list[dict[str, Any]]] = {}
        self._records: dict[str, tuple[int, RunRecord]] = {}
        self._changes = 0
        self.when_done: Callable[[], object] = lambda: None

    def names(self) -> list[str]:
        """The runs that there are, in order."""
        files = self._out.iterdir() if self._out.is_dir() else ()
        found = [path.stem for path in files if path.suffix == ".yaml" and _NAME.fullmatch(path.stem)]
        return sorted(found, key=lambda name: int(name[4:]))

    def begin(self, recipe: Recipe) -> str:
        """Begins a run of `recipe`, and gives its name. Raises RunRefusedError while another one is going on."""
        with self._lock:
            self._refuse_two()
            number = 1 + max((int(name[4:]) for name in self.names()), default=0)
            name = f"run-{number:03d}"
            self._out.mkdir(parents=True, exist_ok=True)
            write_atomic(self._recipe(name), recipe.dump())
            write_atomic(self._program(name), program(recipe, self._workload, str(self._out / f"{name}-again")))
            self._start(name)
        return name

    def resume(self, name: str) -> None:
        """Goes on with a run that was paused, failed, or ended with its server. Raises RunRefusedError."""
        with self._lock:
            self._known(name)
            self._refuse_two()
            if self.state(name) == "done":
                raise RunRefusedError(f"{name} is done")
            self._start(name)

    def pause(self, name: str) -> None:
        """Stops a run in order: finished stages and epochs are kept. Raises RunRefusedError where it is not going."""
        with self._lock:
            going = self._going.get(name)
            if going is None:
                raise RunRefusedError(f"{name} is not going on")
            going.paused = True
            going.process.terminate()

    def discard(self, name: str) -> None:
        """Deletes a run that is not going on. Raises RunRefusedError."""
        with self._lock:
            self._known(name)
            if name in self._going:
                raise RunRefusedError(f"{name} is going on; pause it first")
            shutil.rmtree(self._out / name, ignore_errors=True)
            self._recipe(name).unlink(missing_ok=True)
            self._program(name).unlink(missing_ok=True)
            self._log(name).unlink(missing_ok=True)
            self._told.pop(name, None)
            self._records.pop(name, None)
        self._changed()

    def end(self) -> None:
        """Stops what is going on, as the server ends."""
        for going in [*self._going.values()]:
            going.process.terminate()
        for going in [*self._going.values()]:
            going.process.wait()

    def state(self, name: str) -> str:
        """What has become of a run: "going on", "pausing", "done", "failed" or "paused"."""
        if name in self._going:
            return "pausing" if self._going[name].paused else "going on"
        if (self._out / name / "report.json").is_file():
            return "done"
        told = self._told.get(name, [])
        return "failed" if told and told[-1]["kind"] == "Failed" else "paused"

    def file(self, name: str, wanted: str) -> tuple[Path, str] | None:
        """The path and media type of a file of a run, None where there is none; neither name is a path."""
        beside = {RECIPE: self._recipe(name), PROGRAM: self._program(name)}
        if name not in self.names() or wanted not in FILES:
            return None
        path = beside.get(wanted, self._out / name / wanted)
        return (path, FILES[wanted]) if path.is_file() else None

    def stand(self) -> Hashable:
        """What is the same for as long as `page` is."""
        files = [path for name in self.names() for path in (self._out / name, self._out / name / "report.json")]
        return self._changes, tuple((str(path), path.stat().st_mtime_ns if path.exists() else 0) for path in files)

    def page(self) -> dict[str, Any]:
        """What the template of the runs takes."""
        rows = [self._row(name) for name in reversed(self.names())]
        done = [row["name"] for row in rows if row["result"] is not None]
        return {"runs": rows, "done": done, "panels": self._panels()}

    def stages(self, name: str) -> dict[str, Any] | None:
        """What the template of one finished run takes; None where there is no such result."""
        record = self._finished(name)
        return None if record is None else stage_by_stage(name, record)

    def beside(self, one: str, other: str) -> dict[str, Any] | None:
        """What the template of two finished runs takes; None where one of them has no result."""
        records = [self._finished(one), self._finished(other)]
        known = [record for record in records if record is not None]
        return beside((one, other), known) if len(known) == len(records) else None

    def finished(self) -> list[tuple[str, Recipe, float]]:
        """The finished runs that trained: name, recipe, and the drop on validation data behind the last training."""
        found = []
        for name in self.names():
            record = self._finished(name)
            drops = [
                step.validation["drop"]["value"]
                for step in (record.steps if record is not None else ())
                if step.kept and step.stage in _TRAININGS and step.validation.get("drop")
            ]
            if drops:
                found.append((name, Recipe.load(self._recipe(name)), float(drops[-1])))
        return found

    def _finished(self, name: str) -> RunRecord | None:
        return self._record(name) if name in self.names() and self.state(name) == "done" else None

    def _row(self, name: str) -> dict[str, Any]:
        state, told = self.state(name), self._told.get(name, [])
        epochs = [event for event in told if event["kind"] == "EpochFinished"]
        begun = [event["stage"] for event in told if event["kind"] == "StageStarted"]
        finished = [event for event in told if event["kind"] == "StageFinished"]
        return {
            "name": name,
            "state": state,
            "stage": printable(begun[-1]) if begun and state == "going on" else "",
            "steps": [
                {
                    "stage": printable(event["stage"]),
                    "kept": event["kept"],
                    "ms": "" if event["latency_ms"] is None else f"{event['latency_ms']:.3g} ms",
                    "score": "" if event["score"] is None else f"{event['score']:.4f}",
                    "reason": printable(event["reason"]),
                }
                for event in finished
            ],
            "charts": _charts(epochs) if state != "done" else [],
            "to_go": _to_go(epochs, self._epochs(name)) if state == "going on" else "",
            "failed": printable(told[-1]["reason"]) if state == "failed" else "",
            "log": self._last_words(name) if state == "failed" else "",
            "result": self._result(name) if state == "done" else None,
            "files": [wanted for wanted in FILES if self.file(name, wanted) is not None],
            "command": self._command(name),
        }

    def _command(self, name: str) -> str:
        words = ["compressor", "run", self._recipe(name), "--workload", self._workload]
        return shlex.join(map(str, [*words, "--out", self._out / f"{name}-again"]))

    def _epochs(self, name: str) -> int:
        """How many epochs the last training of a run's recipe has, as it is written."""
        try:
            stages = Recipe.load(self._recipe(name)).stages
        except (CompressorError, OSError):
            return 0
        return max((getattr(stage, "epochs", 0) for stage in stages), default=0)

    def _last_words(self, name: str) -> str:
        """The end of what the run's process wrote to standard error."""
        try:
            with self._log(name).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
                text = log.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(printable(line) for line in text.splitlines()[-_LOG_LINES:])

    def _record(self, name: str) -> RunRecord | None:
        """The report of a run, read once for as long as it stays the same; None without one that can be read."""
        path = self._out / name / "report.json"
        try:
            written = path.stat().st_mtime_ns
            if name not in self._records or self._records[name][0] != written:
                self._records[name] = written, RunRecord.from_json(read_json(path))
            return self._records[name][1]
        except (StorageError, OSError, KeyError, TypeError, ValueError):
            return None

    def _result(self, name: str) -> dict[str, Any] | None:
        record = self._record(name)
        measured = _final(record)
        if record is None or measured is None:
            return None
        return {
            "score": f"{measured.score.value:.4f}",
            "ms": f"{measured.latency_ms.value:.3g} ms",
            "speed": {"faster": f"{times(measured.speedup.value)} faster", "slower": "slower"}.get(
                claim(measured.speedup), "as fast as before"
            ),
            "size": size(measured.size_bytes),
        }

    def _panels(self) -> list[Panel]:
        """Score against milliseconds, and against bytes, of every finished run and of the model before them."""
        found: list[tuple[str, Measurement]] = []
        for name in self.names():
            record = self._record(name) if self.state(name) == "done" else None
            measured = _final(record)
            if record is None or measured is None:
                continue
            found = found or [("as it is", record.reference.measurement or measured)]
            # Runs are of different moments, each timed in turns with the same reference.
            found.append((name, replace(measured, latency_ms=in_time_of(found[0][1].latency_ms, measured.speedup))))
        if len(found) < 2:
            return []
        return [_panel(found, by_time=by_time, up=self._up) for by_time in (True, False)]

    def _recipe(self, name: str) -> Path:
        return self._out / f"{name}.yaml"

    def _log(self, name: str) -> Path:
        return self._out / f"{name}.log"

    def _program(self, name: str) -> Path:
        return self._out / f"{name}.py"

    def _known(self, name: str) -> None:
        if name not in self.names():
            raise RunRefusedError("there is no such run")

    def _refuse_two(self) -> None:
        if self._going:
            raise RunRefusedError(f"{next(iter(self._going))} is going on; one at a time, so that they time alone")

    def _start(self, name: str) -> None:
        with self._log(name).open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - this very Python, and names of ours
                [sys.executable, "-m", _WORKER, self._recipe(name), self._workload, self._out / name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._told[name] = []
        self._going[name] = _Going(process=process, told=self._told[name])
        threading.Thread(target=self._follow, args=(name,), name=f"following {name}", daemon=True).start()
        self._changed()

    def _follow(self, name: str) -> None:
        going = self._going[name]
        assert going.process.stdout is not None
        for line in going.process.stdout:
            try:
                told = json.loads(line)
            except ValueError:
                # Somebody's own code prints.
                continue
            if isinstance(told, dict) and "kind" in told:
                going.told.append(told)
                self._changed()
        code = going.process.wait()
        for pipe in (going.process.stdout, going.process.stdin):
            if pipe is not None:
                pipe.close()
        if code not in {0, 143, -15} and not (going.told and going.told[-1]["kind"] == "Failed"):
            going.told.append({"kind": "Failed", "reason": _ended(code)})
        with self._lock:
            del self._going[name]
        self._changed()
        self.when_done()

    def _changed(self) -> None:
        self._changes += 1
        self._events.publish("ran", {"runs": len(self.names())})


def _ended(code: int) -> str:
    """How a process ended that said nothing of it."""
    if code >= 0:
        return f"its process ended with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"its process was ended by {name}; what it finished is kept, and it goes on from there"


def _final(record: RunRecord | None) -> Measurement | None:
    return None if record is None else record.steps[record.final].measurement


def _charts(epochs: Sequence[dict[str, Any]]) -> list[LineChart]:
    if len(epochs) < 2:
        return []
    last = epochs[-1]["training"]
    mine = [event for event in epochs if event["training"] == last]
    charts = []
    for key, title in (("loss", "loss"), ("score", "score on validation data")):
        points = [(float(event["epoch"]), float(event[key])) for event in mine if event[key] is not None]
        if len(points) > 1:
            charts.append(line_chart(title, points, lambda value, places: f"{value:.{places}f}", best=None))
    return charts


def _to_go(epochs: Sequence[dict[str, Any]], wanted: int) -> str:
    """About how long the training goes on, by its last epoch."""
    if not epochs or epochs[-1]["epoch"] + 1 >= wanted:
        return ""
    return f"about {duration((wanted - 1 - epochs[-1]['epoch']) * epochs[-1]['seconds'])} of training to go"


def _panel(found: Sequence[tuple[str, Measurement]], *, by_time: bool, up: bool) -> Panel:
    points = []
    for name, one in found:
        x = (one.latency_ms.value, one.latency_ms.low, one.latency_ms.high) if by_time else (one.size_bytes / 1024,) * 3
        y = (one.score.value, one.score.low, one.score.high)
        beaten = any(_beats(other, one, up=up) for _, other in found)
        points.append(Point(name=name, x=x, y=y, best=not beaten, title=name))
    return panel(
        "score against time" if by_time else "score against file size",
        points,
        x_title="latency, ms a call" if by_time else "file, KiB",
        y_label=lambda value: f"{value:.4g}",
        up=up,
    )


def _beats(one: Measurement, other: Measurement, *, up: bool) -> bool:
    """Whether `one` is as good as `other` in score, time and size, and better in one of them."""
    sign = 1 if up else -1
    pairs = [
        (sign * one.score.value, sign * other.score.value),
        (-one.latency_ms.value, -other.latency_ms.value),
        (-one.size_bytes, -other.size_bytes),
    ]
    return all(mine >= theirs for mine, theirs in pairs) and any(mine > theirs for mine, theirs in pairs)
