"""How long two files take against each other: fresh sessions, calls in turns, an interval of the ratio."""

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.batches import Inputs
from compressor.checks import check_count, check_positive
from compressor.estimate import Estimate
from compressor.measuring.quiet import quiet_machine
from compressor.progress.bars import progress_bar
from compressor.runtime import feeds_of, open_session

# Blocks of calls in a row last about this long: short against the seconds over which a shared machine speeds up and
# slows down, long against the few calls that refill the caches after the other file ran.
_BLOCK_SECONDS = 0.002
_MAX_BLOCK_CALLS = 32
# So many blocks of a file say what a repeat can: the error of their median lies below what repeats differ by.
_MOST_BLOCKS_A_SECOND = 12
# Refilling the caches after the other file ran takes some 0.1 ms: below 1 % of calls that are slower than this.
_SLOW_SECONDS = 0.02
# The smallest standard error of a ratio that is believed: seven repeats then resolve half a percent. On a quiet machine
# they agree to 0.04 %, yet the A/A means of one file lay up to three such errors from 1. Whatever all repeats of a
# process share, such as where its code lies in memory, they cannot show.
_RESOLUTION = 0.002
# The share of a repeat's time that warming up may take where the calls do not settle earlier.
_WARM_UP_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds per call of two files, and how many times faster the candidate is than the reference.

    `met` says in words what else the machine did meanwhile; "" where it was quiet.
    """

    reference_ms: Estimate
    candidate_ms: Estimate
    speedup: Estimate
    met: str = ""


def in_time_of(reference_ms: Estimate, speedup: Estimate) -> Estimate:
    """The milliseconds of what is so much faster than a reference, in the session in which that took `reference_ms`.

    Milliseconds of two moments on one machine do not compare; what was timed in turns with one reference does, by its
    speed-up over it. The interval is the one of the speed-up; the reference's own where they are one file.
    """
    if speedup == Estimate(1.0, 1.0, 1.0):
        return reference_ms
    value, low, high = (reference_ms.value / times for times in (speedup.value, speedup.high, speedup.low))
    return Estimate(value, low, high)


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
    """The latency of both files for `inputs`, and the ratio with its 95 % interval, in `seconds` or less.

    Each of the `repeats` (>= 3) opens fresh sessions of both, in an order drawn from `seed`, warms them up and runs
    them in turns, in blocks of calls A B B A. Its ratio is the median over the pairs of neighbouring blocks; value and
    interval are the mean and Student's t over the repeats' logarithms. Files of a millisecond take about half of
    `seconds`, for enough blocks have run then; slow files take longer: every repeat runs each file at least four times.
    Other timings on this machine, and work of ours, wait meanwhile. Raises ValueError for files that cannot be loaded
    or fed `inputs`.
    """
    check_count(repeats, "repeats counts the sessions that the interval comes from", least=3)
    check_positive(seconds, "seconds is the time to spend")
    with quiet_machine(threads) as met:
        measured = _repeats(
            (reference, candidate), inputs, threads=threads, seed=seed, repeats=repeats, seconds=seconds
        )
    blocks = [np.log(pair) for pair in measured]
    medians = np.array([np.median(pair, axis=1) for pair in blocks]) + math.log(1e3)
    # Neighbouring blocks see the same load: from repeat to repeat the medians of their ratios scatter less than the
    # ratios of the two overall medians, on a busy machine as little as half as much.
    ratios = np.array([np.median(reference_log - candidate_log) for reference_log, candidate_log in blocks])
    return Timing(
        reference_ms=_exp_interval(medians[:, 0]),
        candidate_ms=_exp_interval(medians[:, 1]),
        speedup=_exp_interval(ratios, floor=_RESOLUTION),
        met=met.says,
    )


def _repeats(
    files: Sequence[bytes], inputs: Inputs, *, threads: int, seed: int, repeats: int, seconds: float
) -> list[NDArray[np.float64]]:
    """For every repeat the seconds per call of both files, (2, blocks)."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in progress_bar(range(repeats), desc="timing", unit="session"):
        start = perf_counter()
        padding, calls, typical = [], {}, []
        for which in generator.permutation(2).tolist():
            # The allocator hands the same addresses to the same sequence of requests: without something of another
            # size in between, all repeats would share one memory layout, and its luck (Mytkowicz et al. 2009).
            padding.append(np.ones(int(generator.integers(1, 1 << 16)), dtype=np.uint8))
            calls[which] = _call(files[which], inputs, threads)
            typical.append(_warm_up(calls[which], _WARM_UP_SHARE / 2 * seconds / repeats))
        budget = max(seconds / repeats - (perf_counter() - start), 0.25 * seconds / repeats)
        first, most = int(generator.integers(2)), round(_MOST_BLOCKS_A_SECOND * seconds)
        found.append(_interleave((calls[0], calls[1]), typical, budget, first=first, most=most))
    return found


def _call(file: bytes, inputs: Inputs, threads: int) -> Callable[[], Any]:
    session = open_session(file, threads=threads)
    feeds = feeds_of(session, inputs)
    return lambda: session.run(None, feeds)


def _interleave(
    calls: tuple[Callable[[], Any], Callable[[], Any]],
    typical: Sequence[float],
    budget: float,
    *,
    first: int,
    most: int,
) -> NDArray[np.float64]:
    """The seconds per call of both, (2, blocks), from blocks of calls in the order A B B A.

    For `budget` seconds, until there are `most` blocks of each, but at least two.
    """
    # Both get blocks of the same size by the same rule: sizes of their own would follow the noise of the warm-up, and
    # a file whose blocks came out shorter would look slower (1 % in A/A runs of a 2.4 ms model).
    together = math.sqrt(typical[0] * typical[1])
    size = min(_MAX_BLOCK_CALLS, max(2, round(_BLOCK_SECONDS / together))) if together < _SLOW_SECONDS else 1
    blocks: tuple[list[float], list[float]] = ([], [])
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = perf_counter() + budget
        while len(blocks[0]) < 2 or (len(blocks[0]) < most and perf_counter() < end):
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
