"""Images a second of the training loop beside busy processes: threads chosen by timing against each fixed number.

    python -m benchmarks.training_threads [--rounds 3] [--batches 24] [--long 120] [--loads 0 1 2 4]

ResNet-20 on random 32x32 images with batches of 128, beside 0, 1, 2 and 4 processes that only count. A fixed number of
threads is timed over `batches`, for its rate does not change; what the loop chooses over `long` ones, everything that
it tried included. All take turns in every round, so that what else runs hits all; the ratio is that of the medians,
ours over the best fixed one. `--loads` measures these again and keeps the others as they are stored.
"""

import argparse
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.demo import busy_processes
from benchmarks.stored import RESULTS
from benchmarks.training_throughput import make_workload, our_rate
from compressor.machine import core_count, environment
from compressor.storage import read_json, write_json
from compressor.target import Target
from compressor.workload import Workload

RESULT = RESULTS / "training-threads.json"
LOADS = (0, 1, 2, 4)
OURS = "ours"


def fixed_numbers(cores: int) -> list[int]:
    """The fixed numbers of threads: every one up to four cores, halves of the rest."""
    return list(range(1, cores + 1)) if cores <= 4 else sorted({1, 2, 4, cores // 2, cores})


@contextmanager
def threads_fixed(number: int | None) -> Iterator[None]:
    """Within it the loop trains with `number` threads, as the environment would tell it; None leaves it the choice."""
    before, name = torch.get_num_threads(), "OMP_NUM_THREADS"
    told = os.environ.pop(name, None)
    if number is not None:
        os.environ[name] = str(number)
    torch.set_num_threads(core_count() if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        os.environ.pop(name, None)
        if told is not None:
            os.environ[name] = told


def measured(count: int, numbers: list[int], rounds: int, short: Workload, long: Workload) -> dict[str, Any]:
    """The rates beside `count` busy processes, by number of threads and for what the loop chooses."""
    rates: dict[str, list[float]] = {str(number): [] for number in numbers} | {OURS: []}
    with busy_processes(count):
        for turn in range(rounds):
            for name, found in rates.items():
                with threads_fixed(None if name == OURS else int(name)):
                    found.append(our_rate(long if name == OURS else short))
            shown = ", ".join(f"{name} {found[-1]:.0f}" for name, found in rates.items())
            print(f"{count} beside, round {turn + 1} of {rounds}: {shown} images/s", flush=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    best = max(value for name, value in medians.items() if name != OURS)
    return {"busy_processes": count, "rates": rates, "medians": medians, "ratio": medians[OURS] / best}


def main() -> None:
    """Runs all loads and stores them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--long", type=int, default=120)
    parser.add_argument("--loads", type=int, nargs="+", choices=LOADS, default=list(LOADS))
    options = parser.parse_args()
    where = environment(Target())
    numbers, short, long = fixed_numbers(core_count()), make_workload(options.batches), make_workload(options.long)
    our_rate(make_workload(3))
    stored = read_json(RESULT)["loads"] if RESULT.exists() and len(options.loads) < len(LOADS) else []
    found = {load["busy_processes"]: load for load in stored}
    for count in options.loads:
        facts = {"batches": options.batches, "long": options.long, "environment": where}
        found[count] = measured(count, numbers, options.rounds, short, long) | facts
        loads = [found[each] for each in LOADS if each in found]
        write_json(RESULT, {"benchmark": "training-threads", "loads": loads})
        print(f"{count} beside: {found[count]['ratio']:.2f} of the best fixed number of threads")
    print(f"stored in {RESULT}")


if __name__ == "__main__":
    main()
