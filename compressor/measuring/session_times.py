"""Times of one session: a pair of files is timed once in it, so that every run of the session judges by one number."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort

from compressor.errors import StorageError
from compressor.estimate import Estimate
from compressor.measuring.quiet import quiet_machine
from compressor.measuring.timing import Timing
from compressor.storage import read_sealed, sha256, write_sealed
from compressor.target import Target, cpu_name


class Times:
    """Timings by the two files, their load, and how long they were timed.

    With a `path` a session that was killed goes on with the times that it had, and processes that have the same one
    time a pair once; a file of another machine, of another version, or one that is damaged, counts as none.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, Timing] = {}
        self._together: dict[str, dict[str, Timing]] = {}
        self._look()

    def of(
        self, candidate: bytes, reference: bytes, load: tuple[Target, Any], take: Callable[[], Timing], *, decides: bool
    ) -> Timing:
        """The timing of both under `load`, a target and the shapes of the inputs; taken by `take` where not known."""
        target, shapes = load
        told = (sha256(candidate), sha256(reference), target.batch_size, target.threads, repr(shapes), decides)
        key = sha256(repr(told).encode())
        if key not in self._known:
            with quiet_machine(target.threads):
                # Whoever timed while this one waited may have timed the same.
                self._look()
                if key not in self._known:
                    self._known[key] = take()
                    self._write()
        return self._known[key]

    def together(self, what: str, take: Callable[[], dict[str, Timing]]) -> dict[str, Timing]:
        """Timings by name that are taken in one go, all or none; `what` names the files and their load."""
        key = sha256(what.encode())
        if key not in self._together:
            self._together[key] = take()
            self._look()
            self._write()
        return self._together[key]

    def _look(self) -> None:
        """Takes in what is on disk; what this process knows stays."""
        if self._path is not None and self._path.is_file():
            known, together = _read(self._path)
            self._known, self._together = known | self._known, together | self._together

    def _write(self) -> None:
        if self._path is not None:
            together = {key: _all_as_json(timings) for key, timings in self._together.items()}
            write_sealed(self._path, {**_facts(), "times": _all_as_json(self._known), "together": together})


def _facts() -> dict[str, Any]:
    return {"cpu": cpu_name(), "onnxruntime": ort.__version__}


def _all_as_json(timings: Mapping[str, Timing]) -> dict[str, Any]:
    return {
        key: {name: value if isinstance(value, str) else vars(value) for name, value in vars(timing).items()}
        for key, timing in timings.items()
    }


def _all(saved: Mapping[str, Any]) -> dict[str, Timing]:
    return {key: _timing(entry) for key, entry in saved.items()}


def _timing(entry: Mapping[str, Any]) -> Timing:
    values: dict[str, Any] = {
        name: value if isinstance(value, str) else Estimate(**value) for name, value in entry.items()
    }
    return Timing(**values)


def _read(path: Path) -> tuple[dict[str, Timing], dict[str, dict[str, Timing]]]:
    try:
        saved = read_sealed(path, way_out="the times are taken anew")
        if {name: saved.get(name) for name in _facts()} != _facts():
            return {}, {}
        return _all(saved["times"]), {key: _all(entry) for key, entry in saved["together"].items()}
    except (StorageError, KeyError, TypeError, ValueError, AttributeError):
        return {}, {}
