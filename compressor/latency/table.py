"""Milliseconds of single operators in ONNX Runtime, measured where the model will run and kept on disk.

What a width costs is a staircase that kernels, blocked layouts and caches decide, so it is measured and not computed:
each operator as small graphs (`operator_graphs`), in the neighbourhood that is asked for, and only once a machine.
"""

import gc
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import onnxruntime as ort

from compressor.latency.cache import read_times, write_times
from compressor.latency.operator_graphs import operator_graph, runnable
from compressor.latency.operators import CONVOLUTIONS, PRODUCTS, RECURRENT, Operator
from compressor.measuring.quiet import quiet_machine
from compressor.progress.bars import progress_bar
from compressor.runtime import load_session, session_options
from compressor.storage import cache_folder
from compressor.target import Target, cpu_name

# Raised when graphs or the way of timing change: tables of before would not compare.
_METHOD = 2
# How long the larger graph of an operator runs: long against the microseconds by which the start of a call varies.
_RUN_SECONDS = 2e-4
_MOST_COPIES = 17
# Weights of all copies together, so that they stay in the cache next to the core as those of a small model do.
_RESIDENT_BYTES = 1 << 20
# A product of more rows computes for longer than its weights take to arrive.
_FEW_ROWS = 16
# Sizes of models, in KiB of weights, between which few-row products are told apart: from 1 to 48 MiB.
_FOOTPRINTS = tuple(kib for power in range(6) for kib in (1024 << power, 1536 << power))
# Blocks of calls of either graph in turns, until the time is up and there are enough of them.
_SECONDS = 0.008
_FEWEST_BLOCKS, _CALLS = 3, 3
_SAVE_SECONDS = 10.0
# Fewer operators than this are timed before a progress bar could be read.
_SEEN_FROM = 50


class LatencyTable:
    """Measured times of operators in ONNX Runtime on `target`, kept between runs.

    `folder` is by default $COMPRESSOR_CACHE or the user's cache folder; the file in it is named by CPU, ONNX Runtime's
    version and threads. A file that cannot be used is made anew, and one that cannot be written is left, each with a
    CacheWarning. The times are those of an undisturbed machine: minima, which other load can only raise.
    """

    def __init__(self, target: Target, *, folder: Path | None = None, progress: bool = True) -> None:
        self.target = target
        self.folder = folder if folder is not None else cache_folder()
        self.progress = progress
        self._entries: dict[Operator, float] = {}
        self._read()

    @property
    def path(self) -> Path:
        """The JSON file of the table."""
        words = (cpu_name(), self.target.isa.value, f"ort-{ort.__version__}", f"threads-{self.target.threads}")
        return self.folder / f"latency-{re.sub(r'[^a-z0-9.]+', '-', '-'.join(words).lower())}.json"

    def __len__(self) -> int:
        return len(self._entries)

    def milliseconds(self, operators: Sequence[Operator], precision: str = "float32") -> list[float]:
        """The time of each operator in milliseconds, of its whole batch; what is missing is measured and stored.

        `precision`, "float32" or "int8", is the form of operators that do not say their own; without a kernel worth
        using for it, they count in float32. Raises ValueError where ONNX Runtime cannot run an operator.
        """
        wanted = [runnable(operator, precision) for operator in operators]
        missing = [operator for operator in dict.fromkeys(wanted) if operator not in self._entries]
        if missing:
            self._measure(missing)
        return [self._entries[operator] for operator in wanted]

    def known(self, operators: Sequence[Operator], precision: str = "float32") -> list[float | None]:
        """As `milliseconds`, with nothing measured: None where the table has no time."""
        return [self._entries.get(runnable(operator, precision)) for operator in operators]

    def total(self, operators: Sequence[Operator], precision: str = "float32") -> float:
        """The milliseconds of a call of one model made of all these operators."""
        return math.fsum(self.milliseconds(in_one_model(operators, precision), precision))

    def _measure(self, missing: Sequence[Operator]) -> None:
        quiet = not self.progress or len(missing) < _SEEN_FROM
        bar = progress_bar(missing, desc="timing operators", unit="op", shown=not quiet)
        saved = perf_counter()
        try:
            with quiet_machine(self.target.threads):
                # Who was waited for may have measured the same.
                self._read()
                for operator in bar:
                    if operator in self._entries:
                        continue
                    self._entries[operator] = time_operator(operator, self.target)
                    if perf_counter() - saved > _SAVE_SECONDS:
                        self._write()
                        saved = perf_counter()
        finally:
            bar.close()
            self._write()

    def _read(self) -> None:
        for operator, milliseconds in read_times(self.path, _METHOD).items():
            # What this process measured itself stays: one run sees one set of numbers.
            self._entries.setdefault(operator, milliseconds)

    def _write(self) -> None:
        facts = {
            "cpu": cpu_name(),
            "isa": self.target.isa.value,
            "onnxruntime": ort.__version__,
            "threads": self.target.threads,
            "method": _METHOD,
        }
        self._entries = write_times(self.path, facts, self._entries)


def time_operator(operator: Operator, target: Target) -> float:
    """Milliseconds of an operator that `runnable` gave back, measured now, in some ten milliseconds.

    The difference between a graph of many copies and a graph of few, over the number of copies more; each graph's time
    is its fastest block of calls. Raises ValueError where ONNX Runtime cannot run it.
    """
    call = partial(_call, operator, target=target)
    with _uncollected():
        if operator.flags == ("Call",):
            return 1e3 * min(_block(_plain_call(operator, target)) for _ in range(50))
        fewest, most = _copies(operator)
        one, many = call(fewest), call(fewest + 1)
        alone = max(min(_block(many, 1), _block(many, 1)) - _block(one, 1), 1e-6)
        copies = most if operator.footprint else min(most, fewest + max(1, math.ceil(_RUN_SECONDS / alone)))
        if copies > fewest + 1:
            many = call(copies)
        fastest = [math.inf, math.inf]
        end, blocks = perf_counter() + _SECONDS, 0
        while blocks < _FEWEST_BLOCKS or perf_counter() < end:
            fastest[0], fastest[1] = min(fastest[0], _block(one)), min(fastest[1], _block(many))
            blocks += 1
    # On a busy machine the difference of two quick graphs can vanish; no operator is free.
    return max(1e3 * (fastest[1] - fastest[0]) / (copies - fewest), 1e-5)


def _call(operator: Operator, copies: int, *, target: Target) -> Callable[[], Any]:
    graph = operator_graph(operator, copies, target)
    options = session_options(target.threads)
    if not graph.optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = load_session(graph.onnx_bytes, options)
        # Bound once: a call then does nothing but compute.
        binding = session.io_binding()
        for name, value in graph.feeds.items():
            binding.bind_cpu_input(name, value)
        binding.bind_output("tock")
        session.run_with_iobinding(binding)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"no time for {json.dumps(operator.as_json())}: {error}") from error
    return partial(session.run_with_iobinding, binding)


def _plain_call(operator: Operator, target: Target) -> Callable[[], Any]:
    graph = operator_graph(operator, 1, target)
    session = load_session(graph.onnx_bytes, session_options(target.threads))
    return partial(session.run, None, graph.feeds)


def _block(call: Callable[[], Any], calls: int = _CALLS) -> float:
    """Seconds of the fastest of `calls` calls; the first of them finds the caches full of another graph's data."""
    fastest = math.inf
    for _ in range(calls):
        start = perf_counter()
        call()
        fastest = min(fastest, perf_counter() - start)
    return fastest


def in_one_model(operators: Sequence[Operator], precision: str = "float32") -> tuple[Operator, ...]:
    """The operators, those that read their weights once with the `footprint` of the model that they all make up.

    A linear layer on few rows takes as long as its weights take to arrive, which depends on the cache that holds all of
    the model. Convolutions, recurrent layers and products of many rows use every weight often, and stay as they are.
    """
    kib = sum(weight_bytes(runnable(operator, precision)) for operator in operators) / 1024
    footprint = min(_FOOTPRINTS, key=lambda size: abs(math.log(size / kib))) if kib > _FOOTPRINTS[0] else 0
    return tuple(
        replace(operator, footprint=footprint) if operator.kind == "linear" and operator.batch < _FEW_ROWS else operator
        for operator in operators
    )


def _copies(operator: Operator) -> tuple[int, int]:
    """The fewest copies in a graph, and the most."""
    # One convolution is always there: the change of layout at its input cancels.
    fewest = 0 if operator.kind == "linear" else 1
    resident = 1024 * operator.footprint or _RESIDENT_BYTES
    limit = 10 * _MOST_COPIES if operator.footprint else _MOST_COPIES
    return fewest, max(fewest + 1, min(limit, round(resident / weight_bytes(operator))))


def weight_bytes(operator: Operator) -> int:
    """The bytes of the operator's weights in its precision, float32 where that is open; at least 1."""
    size = 1 if operator.precision == "int8" else 4
    if operator.kind in CONVOLUTIONS:
        count = operator.inputs * operator.outputs // operator.groups * math.prod(operator.kernel)
    elif operator.kind in RECURRENT:
        count = 4 * operator.outputs * (operator.inputs + operator.outputs)
    elif operator.kind in PRODUCTS:
        count = operator.inputs * operator.outputs
    else:
        count = 1
    return max(1, size * count)


@contextmanager
def _uncollected() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
