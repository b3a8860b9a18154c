"""Trains the network of the workload `digits` and writes the weights that the package ships: `make digits-weights`.

    python -m benchmarks.digits_weights

The recipe is `compressor.workloads.digits.trained_digits`, with seed 0 and one thread. Tensors are stored in half
precision, with what the network scores on validation, and with the machine that trained it: another one rounds sums in
another order, and its weights differ.
"""

import torch

from compressor.machine import environment
from compressor.storage import write_atomic
from compressor.target import Target
from compressor.tensor_files import tensor_file
from compressor.workload import Workload
from compressor.workloads.digits import WEIGHTS, halved, trained_digits

# What the file may take in the repository and in the wheel.
MOST_BYTES = 1 << 20


def accuracy(workload: Workload, part: str = "validation") -> float:
    """The part of the samples of the set `part` that the workload's model gets right."""
    with torch.no_grad():
        right = [workload.model(inputs).argmax(1) == targets for inputs, targets in getattr(workload, part)]
    return float(torch.cat(right).float().mean())


def main() -> None:
    """Trains, and writes the file, or ends without where it grew too large."""
    workload = trained_digits(seed=0)
    facts = {"seed": 0, "validation": accuracy(workload), "environment": environment(Target())}
    content = tensor_file(halved(workload.model), facts)
    if len(content) > MOST_BYTES:
        raise SystemExit(f"the weights take {len(content):,} bytes, and at most {MOST_BYTES:,} are shipped")
    write_atomic(WEIGHTS, content)
    print(f"{facts['validation']:.4f} on validation; {len(content):,} bytes in {WEIGHTS}")


if __name__ == "__main__":
    main()
