"""What the machinery itself costs: a stage that does nothing, and looking up ten thousand stored stages.

    python -m benchmarks.compare.overhead [--stages 40] [--stored 10000]

Seconds are those of the processor. A chain of stages that do nothing is run against one of a single such stage, on a
small network; timings are told at once, for they last as long as they are asked to. The runs write, verify and judge as
every run does, with a store. The second run of the same chain in another folder takes all stages from that store. The
stored stages are small ones; looking up reads and verifies every byte of each.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch

from benchmarks.compare.cost import processor_seconds
from benchmarks.stored import RESULTS
from compressor.estimate import Estimate
from compressor.machine import environment
from compressor.measuring import measure
from compressor.measuring.timing import Timing
from compressor.running.pipeline import Pipeline
from compressor.running.session import Session
from compressor.stage import Context, Effect
from compressor.storage import sha256, write_json
from compressor.store.kept import Store
from compressor.target import Target
from compressor.workload import Workload
from workbench.tiny import make_workload

RESULT = RESULTS / "overhead.json"
GOALS = {"stage_ms": 50.0, "lookup_seconds": 1.0}


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """A stage that leaves the model as it is; `number` tells it from the others."""

    effect: ClassVar[Effect] = Effect.VALUES
    number: int = 0

    def apply(self, model: torch.nn.Module, workload: Workload, context: Context) -> torch.nn.Module:
        """The model."""
        del workload, context
        return model


def main() -> None:
    """Measures both and stores them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", type=int, default=40)
    parser.add_argument("--stored", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = {name: getattr(options, name) for name in ("stages", "stored", "rounds")}
    found = {**stage_costs(options.stages, options.rounds), **lookup_costs(options.stored, options.rounds)}
    where = environment(Target())
    write_json(options.result, {"benchmark": "overhead", "environment": where, **asked, **found, "goals": GOALS})
    print(line(options.stored, found))


def stage_costs(stages: int, rounds: int) -> dict[str, float]:
    """Milliseconds of the processor for an empty stage that is made, and for one that is taken from the store.

    The least of so many rounds.
    """
    made, taken = [], []
    workload = make_workload(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 4)).eval())
    with _timed_at_once():
        with tempfile.TemporaryDirectory() as folder:  # what is imported and built once
            _seconds_of(workload, Path(folder) / "run", 2, Store(Path(folder) / "store"))
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                store = Store(Path(folder) / "store")
                one, many = (_seconds_of(workload, Path(folder) / str(n), n, store) for n in (1, stages))
                again = _seconds_of(workload, Path(folder) / "again", stages, store)
                single = _seconds_of(workload, Path(folder) / "single", 1, store)
            made.append((many - one) / (stages - 1))
            taken.append((again - single) / (stages - 1))
    return {"stage_ms": round(1e3 * min(made), 2), "stored_stage_ms": round(1e3 * min(taken), 2)}


def lookup_costs(count: int, rounds: int) -> dict[str, float]:
    """Seconds of the processor for looking up each of so many stored stages, and for the list of all; the least."""
    keys = [sha256(str(number).encode()) for number in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for number, key in enumerate(keys):
            store.put(
                key, stage="distill", seconds=1.0, facts={"number": number}, contents={"model.onnx": key.encode()}
            )
        lookup = [_seconds(lambda: [store.get(key) for key in keys]) for _ in range(rounds)]
        listed = [_seconds(store.entries) for _ in range(rounds)]
        assert all(store.get(key) is not None for key in keys[:100])
    return {"lookup_seconds": round(min(lookup), 3), "list_seconds": round(min(listed), 3)}


def _seconds_of(workload: Workload, folder: Path, stages: int, store: Store) -> float:
    chain = Pipeline([Nothing(number=number) for number in range(stages)])
    return _seconds(lambda: chain.run(workload, out=folder, progress=False, session=Session(store=store)))


def _seconds(work: Callable[[], Any]) -> float:
    before = processor_seconds()
    work()
    return processor_seconds() - before


@contextmanager
def _timed_at_once() -> Iterator[None]:
    one = Estimate(1.0, 1.0, 1.0)
    timing = Timing(reference_ms=one, candidate_ms=one, speedup=one)
    with mock.patch.object(measure, "time_interleaved", return_value=timing):
        yield


def line(stored: int, found: dict[str, float]) -> str:
    """What came of it."""
    return (
        f"an empty stage takes {found['stage_ms']:.1f} ms (at most {GOALS['stage_ms']:.0f} wanted), "
        f"{found['stored_stage_ms']:.1f} ms from the store; {stored} stored stages are looked up in "
        f"{found['lookup_seconds']:.2f} s (at most {GOALS['lookup_seconds']:.0f} wanted), listed in "
        f"{found['list_seconds']:.2f} s"
    )


if __name__ == "__main__":
    main()
