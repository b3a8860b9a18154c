"""Quantizes the ONNX files of eight programs by evidence, and stores what each keeps of its decisions.

    python -m benchmarks.quantization.files [--only NAME] [--again] [--seconds 2]

The wheels are fetched into an ignored folder. Each file's row is stored in benchmarks/results/files.json at once; a
second call goes on where the first one ended.
"""

import argparse
import json
import time
import traceback
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quantization.files.cases import CASES, Arrays, Case, kept, metric_of
from benchmarks.quantization.files.wheels import unpacked
from benchmarks.stored import RESULTS
from compressor import Workload, read_onnx
from compressor.errors import StageError
from compressor.machine import environment
from compressor.measuring.fidelity import fidelity
from compressor.measuring.timing import time_interleaved
from compressor.runtime import judged_output, open_session
from compressor.stage import Context
from compressor.stages import ByEvidence, Quantize
from compressor.storage import write_atomic
from compressor.target import Target
from compressor.workload import resize_batch

RESULT = RESULTS / "files.json"
HOW_TIMED = (
    "batch 1, one thread; the float file and ours in turns, in blocks A B B A, in seven fresh pairs of sessions; other "
    "programs may have run beside it, so that ratios and their intervals count and milliseconds do not"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="run the files alone whose name contains this")
    parser.add_argument("--again", action="store_true", help="run also what is stored already")
    parser.add_argument("--seconds", type=float, default=2.0, help="of the last timing, for each file")
    parser.add_argument("--results", type=Path, default=RESULT, help="where results are kept")
    arguments = parser.parse_args()
    for case in CASES:
        if arguments.only.lower() not in case.name.lower():
            continue
        if case.name in stored(arguments.results) and not arguments.again:
            continue
        row = row_of(case, seconds=arguments.seconds)
        # Read again: another process may have stored its rows since.
        rows = {**stored(arguments.results), case.name: row}
        known = [rows[each.name] for each in CASES if each.name in rows]
        result = {"environment": environment(Target()), "how_timed": HOW_TIMED, "files": known}
        write_atomic(arguments.results, json.dumps(result, indent=1) + "\n")
        print(json.dumps(row)[:600], flush=True)


def stored(path: Path) -> dict[str, Any]:
    """The rows that are stored, by name."""
    return {row["name"]: row for row in json.loads(path.read_text())["files"]} if path.exists() else {}


def row_of(case: Case, *, seconds: float) -> dict[str, Any]:
    """What became of one file: "kept", "float" with the reason, or "failed"."""
    folder = unpacked(case.package, case.version)
    path = folder / case.path
    row: dict[str, Any] = {"name": case.name, "package": case.package, "file": path.name}
    row["bytes"] = path.stat().st_size
    try:
        inputs = case.inputs(folder, sum(case.samples))
        return row | _quantized(case, path, inputs, seconds=seconds)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is the outcome
        traceback.print_exc()
        return row | {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"[:600]}


def _quantized(case: Case, path: Path, inputs: Arrays, *, seconds: float) -> dict[str, Any]:
    module = read_onnx(path, example=_part(inputs, 0, 2))
    exported = module.onnx_bytes
    names = [value.name for value in open_session(exported).get_outputs()]
    wanted = outputs_of(exported, inputs)
    judged = judged_output(open_session(exported))
    targets = torch.from_numpy(wanted[names.index(judged)])
    bounds = np.cumsum((0, *case.samples)).tolist()
    parts = [(_part(inputs, *span), targets[slice(*span)]) for span in pairwise(bounds)]
    workload = Workload.from_datasets(
        module,
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        metric=metric_of(case.decisions[judged]),
        batch_size=4,
        name=case.name,
    )
    context = Context(progress=False)
    started, worked = time.perf_counter(), time.process_time()
    try:
        shipped = Quantize(form=ByEvidence()).apply(module, workload, context)
        file, outcome = shipped.onnx_bytes, {"outcome": "kept"}  # type: ignore[union-attr]
    except StageError as error:
        file, outcome = exported, {"outcome": "float", "reason": str(error)[:1500]}
    row: dict[str, Any] = {
        **outcome,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - worked, 1),
        "form": context.details.get("chosen_form", "float"),
        "tried": context.details.get("candidates", []),
        "in_float": [entry["node"] for entry in context.details.get("given_back", [])],
        "size_bytes": len(file),
    }
    test = {name: values[bounds[2] :] for name, values in inputs.items()}
    found = outputs_of(file, test)
    row["decisions"] = {
        name: kept(decision.counts(torch.from_numpy(wanted[at][bounds[2] :]), torch.from_numpy(found[at])))
        for name, decision in case.decisions.items()
        for at in [names.index(name)]
    }
    kept_outputs = fidelity(exported, file, [batch for batch, _ in workload.test])
    row["outputs"] = {each.output: {"db": each.db, "channel_db": each.channel_db} for each in kept_outputs}
    if file != exported:
        one = resize_batch(workload.example_inputs, 1)
        row["speedup"] = asdict(time_interleaved(file, exported, one, seconds=seconds, seed=1).speedup)
    return row


def outputs_of(file: bytes, inputs: Arrays) -> list[NDArray[Any]]:
    """Every output for all samples, one at a time as the programs run them."""
    session = open_session(file)
    asked = [value.name for value in session.get_inputs()]
    count = len(next(iter(inputs.values())))
    rows = [session.run(None, {name: inputs[name][at : at + 1] for name in asked}) for at in range(count)]
    return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


def _part(inputs: Arrays, start: int, stop: int) -> Any:
    tensors = {name: torch.from_numpy(values[start:stop]) for name, values in inputs.items()}
    return next(iter(tensors.values())) if len(tensors) == 1 else tensors


if __name__ == "__main__":
    main()
