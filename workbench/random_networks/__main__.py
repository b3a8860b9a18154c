"""Trials of many random networks: `python -m workbench.random_networks FIRST COUNT`, or SEED alone to see one."""

import sys
import warnings
from collections import Counter

import torch

from workbench.random_networks.check import try_network
from workbench.random_networks.growth import RandomNetwork


def main() -> None:
    """Prints every wrong trial with the program of its network, and the counts."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    first, count = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    outcomes: Counter[str] = Counter()
    removed = 0.0
    for seed in range(first, first + count):
        trial = try_network(seed)
        outcomes[trial.outcome] += 1
        removed += trial.removed
        if trial.outcome == "wrong" or count == 1:
            _say(f"seed {seed}: {trial.outcome}, {trial.removed:.0%} removed. {trial.reason}")
            _say(RandomNetwork(seed).program())
    _say(f"{dict(outcomes)}; where pruned, {removed / max(1, outcomes['pruned']):.0%} of the parameters went")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
