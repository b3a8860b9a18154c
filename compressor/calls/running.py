"""A file run on any number of samples, in as many calls as it takes: batches of a fixed size, streams step by step.

In a stream the file's own outputs are its inputs of the next step: an error of one step is carried on, as it is where
the file is used.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from compressor.batches import Inputs
from compressor.calls.samples import TYPES, filled, fixed_batch, laid_out, layout_of, samples_first, samples_of
from compressor.errors import WorkloadError
from compressor.sessions import Feeds

Array = NDArray[Any]
# What computes all outputs of the file for feeds.
Run = Callable[[Feeds], list[Array]]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call: what the file was fed and what it gave, both as it has them, for the first `samples` of its batch.

    `step` counts those of a stream from 0 and begins anew with other samples; 0 elsewhere.
    """

    feeds: Feeds
    outputs: list[Array]
    samples: int
    step: int = 0


def feeds_of(session: ort.InferenceSession, inputs: Inputs) -> Feeds:
    """What `session` is fed for `inputs`, which have samples first: as its file lays them out.

    By name for a dict, by order otherwise; only inputs that the graph has. A file that takes a fixed number of samples
    is fed that many, of a stream the first step. Raises ValueError where the graph has an input that `inputs` lacks,
    and where one that is the same for all samples of a call is not.
    """
    file = _File(session)
    part, count = next(file.parts(samples_of(session, inputs)))
    return laid_out(file.layout, file.at(part, 0, file.first_states(part, file.at_once or count)))


def calls(session: ort.InferenceSession, inputs: Inputs, run: Run | None = None) -> Iterator[Call]:
    """The calls that the file takes for `inputs`, samples first in each; `run` computes them, the session by default.

    Raises as `feeds_of` does.
    """
    file = _File(session)
    run = run or (lambda feeds: session.run(None, feeds))
    places = {name: file.outputs.index(name) for name in file.layout.streams}
    samples = samples_of(session, inputs)
    steps = file.steps(samples) or 1
    for part, count in file.parts(samples):
        states = file.first_states(part, file.at_once or count)
        feeds = laid_out(file.layout, file.at(part, 0, states))
        outputs: list[Array] = []
        for step in range(steps):
            if step:
                feeds = laid_out(file.layout, file.at(part, step, {}))
                feeds |= {state: outputs[places[name]] for name, state in file.layout.streams.items()}
            outputs = run(feeds)
            yield Call(feeds=feeds, outputs=outputs, samples=count, step=step)


def run_on_samples(session: ort.InferenceSession, inputs: Inputs, run: Run | None = None) -> list[Array]:
    """All outputs of the file for `inputs`, samples first in both; an output without a batch is as it is.

    Of a stream, what it gives at every step, (samples, steps, ...).
    """
    file = _File(session)
    parts: list[list[list[Array]]] = []
    for call in calls(session, inputs, run):
        if not call.step:
            parts.append([])
        parts[-1].append([file.rows(place, values, call.samples) for place, values in enumerate(call.outputs)])
    stream = bool(file.steps(samples_of(session, inputs)))
    found = []
    for place in range(len(file.outputs)):
        rows = [np.stack([step[place] for step in part], axis=1) if stream else part[0][place] for part in parts]
        whole = len(rows) == 1 or not file.has_rows(place)
        found.append(rows[0] if whole else _joined(rows))
    return found


def _joined(rows: list[Array]) -> Array:
    """The outputs of several calls behind each other; those that differ in length are no rows of samples any more."""
    if len({part.shape[1:] for part in rows}) == 1:
        return np.concatenate(rows)
    return np.concatenate([part.reshape(-1, *part.shape[2:]) for part in rows])


class _File:
    def __init__(self, session: ort.InferenceSession) -> None:
        self.layout = layout_of(session)
        self.inputs = {node.name: node for node in session.get_inputs()}
        self.outputs = [node.name for node in session.get_outputs()]
        self.at_once = fixed_batch(session)

    def parts(self, samples: Feeds) -> Iterator[tuple[Feeds, int]]:
        """(the samples of one call or stream, how many they are): the last one over again where more must be."""
        total = self.count(samples)
        size = self.at_once
        if not size or (total == size and not self.layout.single):
            yield samples, total
            return
        for start in range(0, total, size):
            part = {
                name: values[start : start + size] if values.ndim and len(values) == total else values
                for name, values in samples.items()
            }
            yield filled(part, size), min(size, total - start)

    def count(self, samples: Feeds) -> int:
        """How many samples there are: the rows of an input that has them."""
        rows = (len(values) for values in samples.values() if values.ndim)
        return next(rows, 1)

    def steps(self, samples: Feeds) -> int:
        """How many steps a stream has; 0 where `samples` are those of one call.

        Raises WorkloadError where inputs have different ones.
        """
        lengths = {name: values.shape[1] for name, values in samples.items() if self._is_sequence(name, values)}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{length} of {name}" for name, length in lengths.items())
            raise WorkloadError(f"the inputs of a stream need as many steps each, (samples, steps, ...), got {told}")
        if 0 in lengths.values():
            raise WorkloadError("a stream needs at least one step, (samples, steps, ...), got none")
        return next(iter(lengths.values()), 0)

    def _is_sequence(self, name: str, values: Array) -> bool:
        streams = self.layout.streams
        if not streams or name in streams.values():
            return False
        own = 0 if self.layout.axis_of(name) is not None else 1
        return values.ndim == len(self.inputs[name].shape) + own + 1

    def at(self, samples: Feeds, step: int, states: Feeds) -> Feeds:
        """One step of `samples` with the first `states`; without states the inputs that are none."""
        known = {name: values for name, values in samples.items() if name not in self.layout.streams.values()}
        picked = {
            name: values[:, step] if self._is_sequence(name, values) else values for name, values in known.items()
        }
        return {**picked, **states}

    def first_states(self, samples: Feeds, count: int) -> Feeds:
        """The states that a stream begins with: those of `samples`, or zeros.

        Raises WorkloadError for unknown sizes.
        """
        states = self.layout.streams.values()
        return {name: samples[name] if name in samples else self._zeros(name, count) for name in states}

    def _zeros(self, name: str, count: int) -> Array:
        node, axis = self.inputs[name], self.layout.axis_of(name)
        sizes = [size for place, size in enumerate(node.shape) if place != axis]
        if not all(isinstance(size, int) for size in sizes):
            raise WorkloadError(
                f"the state {name!r} has the shape {node.shape}, of which sizes are not known; give what a stream "
                "begins with among the inputs"
            )
        return np.zeros((count, *sizes), dtype=TYPES[node.type])

    def has_rows(self, place: int) -> bool:
        """Whether the output has a row for every sample."""
        return self.layout.single or self.layout.outputs.get(self.outputs[place], 0) is not None

    def rows(self, place: int, values: Array, count: int) -> Array:
        """An output of one call with the rows of its samples."""
        if self.layout.single:
            return values[None]
        if not self.has_rows(place):
            return values
        turned = samples_first(values, self.layout.outputs.get(self.outputs[place], 0))
        return turned[:count] if self.at_once and len(turned) == self.at_once else turned


@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """The steps of streams as `samples` of their own, in rows: each is step `steps` of the sample `of`."""

    samples: dict[str, Array]
    of: list[int]
    steps: list[int]


def unrolled(session: ort.InferenceSession, inputs: Inputs) -> Unrolled:
    """A stream's steps as samples of one call each, with the states that the file has come to by then.

    Raises as `feeds_of` does.
    """
    file = _File(session)
    rows: dict[str, list[Array]] = {name: [] for name in file.inputs}
    of: list[int] = []
    steps: list[int] = []
    start = 0
    for call in calls(session, inputs):
        # A step of 0 begins with the samples behind those before it.
        start = len(set(of)) if not call.step else start
        of += range(start, start + call.samples)
        steps += [call.step] * call.samples
        for name, values in call.feeds.items():
            axis = file.layout.axis_of(name)
            whole = np.repeat(values[None], call.samples, axis=0) if axis is None else samples_first(values, axis)
            rows[name].append(whole[: call.samples])
    return Unrolled(samples={name: np.concatenate(parts) for name, parts in rows.items()}, of=of, steps=steps)


def first_step(session: ort.InferenceSession, inputs: Inputs) -> Feeds:
    """The first step of streams as samples of one call, in rows, with the states that they begin with."""
    file = _File(session)
    samples = samples_of(session, inputs)
    found = file.at(samples, 0, file.first_states(samples, file.count(samples)))
    return {name: found[name] for name in file.inputs}


def is_stream(session: ort.InferenceSession, inputs: Inputs) -> bool:
    """Whether `inputs` are sequences of steps; those of one call each, with their states, are none."""
    file = _File(session)
    return bool(file.layout.streams) and file.steps(samples_of(session, inputs)) > 0
