"""ONNX Runtime sessions, an ONNX file as a torch module, and the time two files take against each other."""

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.batches import Inputs
from compressor.checks import check_count, check_positive
from compressor.estimate import Estimate
from compressor.workload import batches_of

Feeds = dict[str, NDArray[Any]]

# Blocks of calls in a row last about this long: short against the seconds over which a shared machine speeds up and
# slows down, long against the few calls that refill the caches after the other file ran.
_BLOCK_SECONDS = 0.002
_MAX_BLOCK_CALLS = 32
# Refilling the caches after the other file ran takes some 0.1 ms: below 1 % of calls that are slower than this.
_SLOW_SECONDS = 0.02
# The smallest standard error of a ratio that is believed: seven repeats then resolve half a percent. On a quiet machine
# they agree to 0.04 %, yet the A/A means of one file lay up to three such errors from 1. Whatever all repeats of a
# process share, such as where its code lies in memory, they cannot show.
_RESOLUTION = 0.002
# The share of a repeat's time that warming up may take where the calls do not settle earlier.
_WARM_UP_SHARE = 0.25


def open_session(model: bytes | Path, *, threads: int = 1) -> ort.InferenceSession:
    """A session of the ONNX file on ONNX Runtime's CPU provider, with `threads` (>= 1) threads inside operators.

    Raises ValueError for a file that ONNX Runtime cannot load.
    """
    check_count(threads, "threads is the number of ONNX Runtime threads")
    return load_session(model, session_options(threads))


def session_options(threads: int = 1) -> ort.SessionOptions:
    """Options for one operator at a time, `threads` threads inside it, and errors alone in the log."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    if threads > 1:
        # Idle threads otherwise spin on after a call, and slow down whatever runs next: the other file, for instance.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def load_session(model: bytes | Path, options: ort.SessionOptions) -> ort.InferenceSession:
    """A CPU session with the given options. Raises ValueError for a file that ONNX Runtime cannot load."""
    source = str(model) if isinstance(model, Path) else model
    name = str(model) if isinstance(model, Path) else f"the ONNX model of {len(model)} bytes"
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class below Exception
        raise ValueError(
            f"ONNX Runtime {ort.__version__} cannot load {name}: {first_line(error)}. It is no ONNX file, is damaged, "
            "or uses operators this version lacks; export it again"
        ) from error


class OnnxModule(nn.Module):
    """An ONNX file as a module: its forward is a call of ONNX Runtime, so gradients end here and it has no parameters.

    Takes tensors in the order of the file's inputs, or by their names; inputs that the file does not have are left
    out. Gives back a tensor, or a tuple where the file has several outputs. Copies and pickles hold the file's bytes.
    """

    def __init__(self, onnx_bytes: bytes, *, threads: int = 1) -> None:
        super().__init__()
        self.onnx_bytes = onnx_bytes
        self.threads = threads
        self._session: ort.InferenceSession | None = open_session(onnx_bytes, threads=threads)

    @property
    def session(self) -> ort.InferenceSession:
        """The running session, opened at the first use of a copy."""
        if self._session is None:
            self._session = open_session(self.onnx_bytes, threads=self.threads)
        return self._session

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The outputs for a batch, on the CPU."""
        feeds = feeds_of(self.session, {**_named(self.session, args), **kwargs})
        outputs = tuple(map(torch.from_numpy, self.session.run(None, feeds)))
        return outputs[0] if len(outputs) == 1 else outputs

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    def extra_repr(self) -> str:
        """The file's size and names, for printing."""
        names = ", ".join(node.name for node in self.session.get_inputs())
        return f"{len(self.onnx_bytes)} bytes, inputs: {names}"


def feeds_of(session: ort.InferenceSession, inputs: Inputs) -> Feeds:
    """What `session` is fed for `inputs`: by name for a dict, by order otherwise; only inputs that the graph has.

    Raises ValueError where the graph has an input that `inputs` lacks.
    """
    named = (
        inputs if isinstance(inputs, Mapping) else _named(session, inputs if isinstance(inputs, tuple) else (inputs,))
    )
    wanted = [node.name for node in session.get_inputs()]
    missing = [name for name in wanted if name not in named]
    if missing:
        raise ValueError(f"the ONNX file has the inputs {wanted}, got {sorted(named)}; pass {missing} as well")
    return {name: np.ascontiguousarray(named[name].detach().cpu().numpy()) for name in wanted}


def predict_batches(onnx_bytes: bytes, data: Iterable[Any], *, threads: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """(output, targets) of every batch of `data`; of several outputs the one called "output", else the first."""
    session = open_session(onnx_bytes, threads=threads)
    names = [node.name for node in session.get_outputs()]
    judged = "output" if "output" in names else names[0]
    for inputs, targets in batches_of(data):
        yield torch.from_numpy(session.run([judged], feeds_of(session, inputs))[0]), torch.as_tensor(targets)


def predict_all(onnx_bytes: bytes, data: Iterable[Any], *, threads: int = 1) -> tuple[Tensor, Tensor]:
    """(outputs, targets) over all of `data`, each concatenated along the first dimension."""
    batches = list(predict_batches(onnx_bytes, data, threads=threads))
    if not batches:
        raise ValueError("data has no batches; if it is a generator, pass something that can be iterated again")
    return torch.cat([output for output, _ in batches]), torch.cat([targets for _, targets in batches])


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds per call of two files, and how many times faster the candidate is than the reference."""

    reference_ms: Estimate
    candidate_ms: Estimate
    speedup: Estimate


def time_interleaved(
    candidate: bytes,
    reference: bytes,
    inputs: Inputs,
    *,
    threads: int = 1,
    seed: int = 0,
    repeats: int = 7,
    seconds: float = 2.0,
) -> Timing:
    """The latency of both files for `inputs`, and the ratio with its 95 % interval, in about `seconds`.

    Each of the `repeats` (>= 3) opens fresh sessions of both, in an order drawn from `seed`, warms them up and runs
    them in turns, in blocks of calls A B B A. Its ratio is the median over the pairs of neighbouring blocks; value and
    interval are the mean and Student's t over the repeats' logarithms. Slow files take longer than `seconds`: every
    repeat runs each file at least four times. Raises ValueError for files that cannot be loaded or fed `inputs`.
    """
    check_count(repeats, "repeats counts the sessions that the interval comes from", least=3)
    check_positive(seconds, "seconds is the time to spend")
    measured = _repeats((reference, candidate), inputs, threads=threads, seed=seed, repeats=repeats, seconds=seconds)
    blocks = [np.log(pair) for pair in measured]
    medians = np.array([np.median(pair, axis=1) for pair in blocks]) + math.log(1e3)
    # Neighbouring blocks see the same load: from repeat to repeat the medians of their ratios scatter less than the
    # ratios of the two overall medians, on a busy machine as little as half as much.
    ratios = np.array([np.median(reference_log - candidate_log) for reference_log, candidate_log in blocks])
    return Timing(
        reference_ms=_exp_interval(medians[:, 0]),
        candidate_ms=_exp_interval(medians[:, 1]),
        speedup=_exp_interval(ratios, floor=_RESOLUTION),
    )


def _repeats(
    files: Sequence[bytes], inputs: Inputs, *, threads: int, seed: int, repeats: int, seconds: float
) -> list[NDArray[np.float64]]:
    """For every repeat the seconds per call of both files, (2, blocks)."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(repeats):
        start = perf_counter()
        padding, calls, typical = [], {}, []
        for which in generator.permutation(2).tolist():
            # The allocator hands the same addresses to the same sequence of requests: without something of another
            # size in between, all repeats would share one memory layout, and its luck (Mytkowicz et al. 2009).
            padding.append(np.ones(int(generator.integers(1, 1 << 16)), dtype=np.uint8))
            calls[which] = _call(files[which], inputs, threads)
            typical.append(_warm_up(calls[which], _WARM_UP_SHARE / 2 * seconds / repeats))
        budget = max(seconds / repeats - (perf_counter() - start), 0.25 * seconds / repeats)
        found.append(_interleave((calls[0], calls[1]), typical, budget, first=int(generator.integers(2))))
    return found


def _call(file: bytes, inputs: Inputs, threads: int) -> Callable[[], Any]:
    session = open_session(file, threads=threads)
    feeds = feeds_of(session, inputs)
    return lambda: session.run(None, feeds)


def _interleave(
    calls: tuple[Callable[[], Any], Callable[[], Any]], typical: Sequence[float], budget: float, *, first: int
) -> NDArray[np.float64]:
    """The seconds per call of both, (2, blocks), from blocks of calls in the order A B B A for `budget` seconds."""
    # Both get blocks of the same size by the same rule: sizes of their own would follow the noise of the warm-up, and
    # a file whose blocks came out shorter would look slower (1 % in A/A runs of a 2.4 ms model).
    together = math.sqrt(typical[0] * typical[1])
    size = min(_MAX_BLOCK_CALLS, max(2, round(_BLOCK_SECONDS / together))) if together < _SLOW_SECONDS else 1
    blocks: tuple[list[float], list[float]] = ([], [])
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = perf_counter() + budget
        while len(blocks[0]) < 2 or perf_counter() < end:
            for which in (first, 1 - first, 1 - first, first):
                call, times = calls[which], []
                if size > 1:
                    call()  # finds the caches full of the other file's data, which a server of one file never meets
                for _ in range(size):
                    start = perf_counter()
                    call()
                    times.append(perf_counter() - start)
                blocks[which].append(float(np.median(times)))
    finally:
        if collecting:
            gc.enable()
    return np.array(blocks)


def _warm_up(call: Callable[[], Any], budget: float) -> float:
    """Seconds per call once the median of five calls stays within 2 % of that of the five before, or time is up."""
    end, times, previous = perf_counter() + budget, [], math.inf
    while True:
        start = perf_counter()
        call()
        now = perf_counter()
        times.append(now - start)
        if len(times) % 5 == 0:
            median = float(np.median(times[-5:]))
            if len(times) >= 20 and abs(median - previous) <= 0.02 * previous:
                return median
            previous = median
        if len(times) >= 2 and now > end:
            return float(np.median(times[-5:]))


def _exp_interval(logs: NDArray[np.float64], *, floor: float = 0.0) -> Estimate:
    """The geometric mean of independent repeats with Student's t interval, from their logarithms.

    `floor` is the smallest standard error that is believed.
    """
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # scipy ships no types

    error = max(float(logs.std(ddof=1)) / math.sqrt(len(logs)), floor)
    mean, half = float(logs.mean()), float(stdtrit(len(logs) - 1, 0.975)) * error
    return Estimate(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def _named(session: ort.InferenceSession, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    names = [node.name for node in session.get_inputs()]
    numbered = {f"input_{index}": tensor for index, tensor in enumerate(tensors)}
    # The exporter may have dropped an input that the model ignores: the rest keep their numbers.
    if len(tensors) > len(names) and all(name in numbered for name in names):
        return {name: numbered[name] for name in names}
    if len(tensors) > len(names):
        raise ValueError(
            f"the ONNX file has {len(names)} inputs, {names}, got {len(tensors)} tensors; pass them by name"
        )
    return dict(zip(names, tensors, strict=False))


def first_line(error: Exception) -> str:
    """What an error says first, without its full stop; its type where it says nothing."""
    return (str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(".")
