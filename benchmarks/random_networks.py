"""How many networks grown at random compute the same after pruning: counts, for the claim.

    python -m benchmarks.random_networks [--networks 2000] [--processes 2]

Each network grows from its number, is pruned at random through the public stage, and is compared with the original with
zeros in double precision: in eval mode on inputs that the stage saw and on others, and in a training step
(`workbench.random_networks`). `make test-random-networks` asserts of the same networks that none is wrong; here they
are counted, a wrong one too.
"""

import argparse
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from benchmarks.stored import RESULTS
from compressor.machine import environment
from compressor.storage import write_json
from compressor.target import Target
from workbench.random_networks.check import Trial, try_network

RESULT = RESULTS / "random-networks.json"
# Networks that a process tries between two answers.
TOGETHER = 20


def tried(first: int) -> list[Trial]:
    """The trials of so many networks from the number `first` on."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    return [try_network(seed) for seed in range(first, first + TOGETHER)]


def all_tried(count: int, processes: int) -> Iterator[Trial]:
    """The trials of the first `count` networks, in order."""
    with ProcessPoolExecutor(max_workers=processes) as pool:
        for trials in pool.map(tried, range(0, count, TOGETHER)):
            yield from (trial for trial in trials if trial.seed < count)


def counted(trials: Iterable[Trial]) -> dict[str, Any]:
    """How many were pruned, refused and wrong, and which share of the parameters went where some did."""
    outcomes: Counter[str] = Counter({"pruned": 0, "refused": 0, "wrong": 0})
    removed, wrong = 0.0, []
    for trial in trials:
        outcomes[trial.outcome] += 1
        removed += trial.removed
        if trial.outcome == "wrong":
            wrong.append({"seed": trial.seed, "reason": trial.reason})
            print(f"seed {trial.seed}: {trial.reason}")
    return {
        "networks": outcomes.total(),
        "outcomes": dict(outcomes),
        "refused_share": round(outcomes["refused"] / max(1, outcomes.total()), 4),
        "removed_where_pruned": round(removed / max(1, outcomes["pruned"]), 4),
        "wrong": wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    result = counted(all_tried(options.networks, options.processes))
    write_json(RESULT, {"benchmark": "random-networks", "environment": environment(Target()), **result})
    print(f"{result['outcomes']}; stored in {RESULT}")


if __name__ == "__main__":
    main()
