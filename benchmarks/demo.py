"""Seconds of `make demo` after installation, on a machine that does nothing else and beside busy processes.

    python -m benchmarks.demo [--rounds 3] [--busy 8]

Every round runs the demo twice into a folder of its own, alone and beside so many processes that only count. The first
demo is not counted: it installs what is missing and fills the system's caches. What the machine did before is stored
with the numbers: they mean little where it was busy.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.stored import RESULTS
from compressor.machine import environment
from compressor.storage import read_json, write_json
from compressor.target import Target
from workbench import ROOT

RESULT = RESULTS / "demo.json"


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Within it, `count` processes beside this one keep a core busy each, as far as there are cores."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def demo() -> dict[str, Any]:
    """The seconds of one demo, and what its report says of the file that ships."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        # A first demo finds no stage that was finished before.
        alone = {**os.environ, "COMPRESSOR_STORE": str(Path(folder) / "store")}
        started = perf_counter()
        subprocess.run(["make", "demo", f"OUT={out}"], cwd=ROOT, env=alone, check=True, capture_output=True)  # noqa: S607 - make is looked up, as people do
        seconds = perf_counter() - started
        report = read_json(out / "report.json")
    shipped = report["steps"][report["final"]]
    return {
        "seconds": round(seconds, 2),
        "ships": shipped["stage"],
        "speedup": shipped["measurement"]["speedup"],
        "size_bytes": shipped["measurement"]["size_bytes"],
        "budget_met": report["budget_met"],
    }


def main() -> None:
    """Runs the rounds and stores them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=8)
    options = parser.parse_args()
    demo()
    where = environment(Target())
    rounds: dict[str, list[dict[str, Any]]] = {"alone": [], "beside": []}
    for number in range(options.rounds):
        for name, count in (("alone", 0), ("beside", options.busy)):
            with busy_processes(count):
                rounds[name].append(demo())
            print(f"round {number + 1} of {options.rounds}, {count} beside: {rounds[name][-1]['seconds']:.1f} s")
    medians = {name: statistics.median(each["seconds"] for each in found) for name, found in rounds.items()}
    write_json(
        RESULT,
        {
            "benchmark": "demo",
            "environment": where,
            "busy_processes": options.busy,
            "seconds": medians,
            "rounds": rounds,
        },
    )
    print(f"{medians['alone']:.1f} s alone, {medians['beside']:.1f} s beside {options.busy}; stored in {RESULT}")


if __name__ == "__main__":
    main()
