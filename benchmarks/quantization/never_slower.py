"""Quantizes every architecture of the zoo under a budget; no file that ships may be slower than its fp32 file.

    python -m benchmarks.quantization.never_slower [--only NAME] [--again] [--seconds 2]

The networks are tiny, so that conversions cost much against what integers save: the hardest case for speed. What became
of each is stored in benchmarks/results/never-slower.json at once; a second call goes on where the first one ended.
"""

import argparse
import json
import statistics
import tempfile
import warnings
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.documents.cells import escaped, spread
from benchmarks.stored import RESULTS
from compressor import Budget, Pipeline
from compressor.batches import Inputs
from compressor.machine import environment
from compressor.measuring.timing import time_interleaved
from compressor.metrics import Metric
from compressor.quantization.choice.give_back import GiveBack
from compressor.stages import Quantize
from compressor.storage import write_atomic
from compressor.target import Target
from compressor.workload import resize_batch
from workbench.zoo import ARCHITECTURES
from workbench.zoo.check import randomized_, workload_of

RESULT = RESULTS / "never-slower.json"
# Random weights have no accuracy to lose: time alone decides here.
UNJUDGED = Metric(name="unjudged", per_sample=lambda _, targets: torch.ones(len(targets)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="run the architectures alone whose name contains this")
    parser.add_argument("--again", action="store_true", help="run also what is stored already")
    parser.add_argument("--seconds", type=float, default=2.0, help="of the last timing, for each network")
    parser.add_argument("--results", type=Path, default=RESULT, help="where results are kept")
    arguments = parser.parse_args()
    rows = run(arguments.only, arguments.results, again=arguments.again, seconds=arguments.seconds)
    print(dict(Counter(row["outcome"] for row in rows)))
    slower = [row["name"] for row in rows if is_slower(row)]
    assert not slower, f"these ship a file that is slower than their fp32 file: {', '.join(slower)}"


def run(only: str, path: Path, *, again: bool, seconds: float) -> list[dict[str, Any]]:
    """The rows of all architectures, those whose name contains `only` run where they are not stored yet."""
    rows = {row["name"]: row for row in json.loads(path.read_text())["architectures"]} if path.exists() else {}
    for architecture in ARCHITECTURES:
        name = architecture.name
        if only.lower() not in name.lower() or (name in rows and not again):
            continue
        start = perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows[name] = {"name": name, **row_of(architecture, seconds=seconds)}
        rows[name]["seconds"] = round(perf_counter() - start, 1)
        print(line(rows[name]), flush=True)
        known = [rows[one.name] for one in ARCHITECTURES if one.name in rows]
        stored = {"environment": environment(Target()), "architectures": known}
        write_atomic(path, json.dumps(stored, indent=1) + "\n")
    return list(rows.values())


def row_of(architecture: Any, *, seconds: float) -> dict[str, Any]:
    """What became of one network: "kept", "rolled back", or "failed" where it could not even be exported."""
    torch.manual_seed(0)
    model = randomized_(architecture.build()).eval()
    workload = replace(workload_of(architecture, model), metric=UNJUDGED)
    with tempfile.TemporaryDirectory() as folder:
        try:
            # The outputs of random weights may well lose a stage's check of their noise: that is an outcome, too.
            pipeline = Pipeline([Quantize(give_back=GiveBack(max_drop=None))], budget=Budget(max_drop=None))
            result = pipeline.run(workload, out=folder, progress=False)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is the outcome
            return {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"[:400]}
        step = result.report.steps[1]
        row: dict[str, Any] = {
            "outcome": "kept" if step.kept else "rolled back",
            "reason": step.reason,
            "form": step.details.get("form"),
            "given_back": [entry["node"] for entry in step.details.get("given_back", ())],
            "tried": len(step.details.get("give_back", {}).get("tried", ())),
        }
        if step.measurement is not None and not step.kept:
            row["stage_speedup"] = asdict(step.measurement.speedup)
        (reference,) = Path(folder).glob("stages/*-reference/model.onnx")
        before, after = reference.read_bytes(), result.artifact.path.read_bytes()
    row["size_ratio"] = len(before) / len(after)
    if before != after:
        row["speedups"] = timed(after, before, resize_batch(workload.example_inputs, 1), seconds)
    return row


def timed(file: bytes, reference: bytes, inputs: Inputs, seconds: float) -> list[dict[str, float]]:
    """The speed-up; where it seems slower, that and a second one of four times the time.

    Of many files that are exactly as fast as before, one in forty would seem slower by chance.
    """
    found = [time_interleaved(file, reference, inputs, seed=1, seconds=seconds).speedup]
    if found[0].high < 1:
        found.append(time_interleaved(file, reference, inputs, seed=2, seconds=4 * seconds).speedup)
    return [asdict(one) for one in found]


def is_slower(row: dict[str, Any]) -> bool:
    """Whether every interval of the file's speed-up lies below 1."""
    speedups = row.get("speedups", [])
    return bool(speedups) and all(one["high"] < 1 for one in speedups)


def line(row: dict[str, Any]) -> str:
    """One network as the terminal shows it."""
    last = row.get("speedups", [None])[-1]
    speed = f"{last['value']:5.2f}x [{last['low']:.2f}, {last['high']:.2f}]" if last else ""
    mark = "SLOWER" if is_slower(row) else ""
    back = f"{len(row['given_back'])} given back; " if row.get("given_back") else ""
    return f"{row['name']:34} {row['outcome']:12} {speed:22} {mark:7}{back}{row['reason'][:110]}"


def section(result: dict[str, Any]) -> list[str]:
    """The section of docs/quantization-results.md: how often each outcome was, and every network's."""
    rows = result["architectures"]
    count = Counter(row["outcome"] for row in rows)
    ratios = [row["speedups"][-1]["value"] for row in rows if row.get("speedups")]
    slower = [row["name"] for row in rows if is_slower(row)]
    median = f"{statistics.median(ratios):.2f}x in the median, " if ratios else ""
    back = sum(bool(row.get("given_back")) for row in rows if row["outcome"] == "kept")
    where = result["environment"]
    parts = [
        "## Never slower (`make bench-never-slower`)",
        "",
        f"**Files that are measurably slower than their fp32 file: {', '.join(slower) or 'none'}.**",
        "",
        (
            "`Pipeline([Quantize(give_back=GiveBack(max_drop=None))], budget=Budget(max_drop=None))` on the "
            f"{len(rows)} tiny networks of `workbench/zoo`, random weights, batch 1, one thread, {where.get('cpu')}: "
            f"{count['kept']} files kept ({median}{back} of them with layers given back to float), "
            f"{count['rolled back']} rolled back to fp32, {count['failed']} failed."
        ),
        "",
        "| network | outcome | speed-up | smaller | given back | why |",
        "|---|---|--:|--:|--:|---|",
    ]
    for row in rows:
        speed = spread(row["speedups"][-1]) if row.get("speedups") else ""
        smaller = f"{row['size_ratio']:.2f}x" if row.get("speedups") else ""
        given = len(row.get("given_back", ())) or ""
        reason = escaped(row["reason"])[:160]
        parts.append(f"| {row['name']} | {row['outcome']} | {speed} | {smaller} | {given} | {reason} |")
    return parts


if __name__ == "__main__":
    main()
