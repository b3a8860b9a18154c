"""A file timed while workers train, which pause for it, against the same file timed while they are stopped.

    python -m benchmarks.compare.exclusive [--workers 8] [--rounds 15] [--seconds 2]

The workers are processes that train by the package's own loop without an end. In every round the file is timed three
times, in an order that is drawn: with the workers stopped by the system (quiet), with the workers training and pausing
(exclusive), and with them training on, the locks turned off (beside). What counts is the median over the rounds of the
exclusive time over the quiet one of the same round, and it should be within 2 % of 1.
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.stored import RESULTS
from compressor.files.export import export_onnx
from compressor.machine import environment
from compressor.measuring.timing import time_interleaved
from compressor.storage import write_json
from compressor.target import Target
from compressor.turns.flocks import PLACE
from compressor.workload import Workload
from compressor.workloads.residual import ResNet
from workbench import ROOT
from workbench.tiny import make_workload

RESULT = RESULTS / "exclusive.json"
ARMS = ("quiet", "exclusive", "beside")
GOAL = 0.02
WORKER = """
import sys
from pathlib import Path
from benchmarks.compare.exclusive import workload
from compressor.stage import Context
from compressor.stages import FineTune
from compressor.target import Target
asked = workload()
while True:
    context = Context(seed=0, target=Target(), folder=None, progress=False, details={}, plan=[])
    FineTune(epochs=1, tail_epochs=0).apply(asked.model, asked, context)
    Path(sys.argv[1]).touch()
"""


def workload() -> Workload:
    """A small residual network on images of noise."""
    torch.manual_seed(0)
    return make_workload(ResNet(blocks=[3, 3], widths=[32, 64], classes=4).eval(), train=512, test=64)


@contextmanager
def training(count: int, folder: Path) -> Iterator[list[subprocess.Popen]]:
    """So many processes that train, each of which has been through an epoch."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    marks = [folder / f"worker-{number}" for number in range(count)]
    processes = [subprocess.Popen([sys.executable, "-c", WORKER, str(mark)], env=environ, cwd=ROOT) for mark in marks]
    try:
        while not all(mark.exists() for mark in marks):
            if any(process.poll() is not None for process in processes):
                raise RuntimeError("a worker has ended")
            time.sleep(0.5)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def taken(arm: str, workers: list[subprocess.Popen], files: tuple[bytes, bytes], seconds: float, seed: int) -> Any:
    """One timing in an arm: the milliseconds of the file, and its speed-up over the other."""
    place = os.environ[PLACE]
    if arm != "exclusive":
        os.environ[PLACE] = "off"
    if arm == "quiet":
        for worker in workers:
            worker.send_signal(signal.SIGSTOP)
    try:
        time.sleep(0.5)
        timing = time_interleaved(*files, workload().example_inputs, seconds=seconds, seed=seed)
    finally:
        os.environ[PLACE] = place
        for worker in workers:
            worker.send_signal(signal.SIGCONT)
    return timing


def main() -> None:
    """Runs all rounds and stores them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    where = environment(Target())
    asked = workload()
    smaller = ResNet(blocks=[1, 1], widths=[32, 64], classes=4).eval()
    files = export_onnx(smaller, asked).onnx_bytes, export_onnx(asked.model, asked).onnx_bytes
    order = random.Random(0)  # noqa: S311 - turns, not secrets
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ[PLACE] = folder
        os.environ["COMPRESSOR_QUIET_SECONDS"] = "0"
        with training(options.workers, Path(folder)) as workers:
            for number in range(options.rounds):
                found = {}
                for arm in order.sample(ARMS, len(ARMS)):
                    timing = taken(arm, workers, files, options.seconds, number)
                    found[arm] = {"ms": timing.candidate_ms.value, "speedup": timing.speedup.value, "met": timing.met}
                rounds.append(found)
                print(", ".join(f"{arm} {found[arm]['ms']:.3f} ms" for arm in ARMS), flush=True)
    result = {"benchmark": "exclusive", "environment": where, "workers": options.workers, **told(rounds)}
    write_json(options.result, result)
    print(line(result))


def told(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The rounds with the median ratio of either arm to the quiet one, of milliseconds and of speed-ups."""
    ratios = {
        f"{arm}_{what}": statistics.median(each[arm][what] / each["quiet"][what] for each in rounds)
        for arm in ARMS[1:]
        for what in ("ms", "speedup")
    }
    return {**ratios, "goal": GOAL, "rounds": rounds}


def line(result: dict[str, Any]) -> str:
    """What came of it."""
    off = max(abs(result[f"exclusive_{what}"] - 1) for what in ("ms", "speedup"))
    return (
        f"beside {result['workers']} workers that pause: {100 * off:.1f} % from a quiet machine (at most "
        f"{100 * GOAL:.0f} % wanted); beside workers that do not: {result['beside_ms']:.2f} times the milliseconds"
    )


if __name__ == "__main__":
    main()
