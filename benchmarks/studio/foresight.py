"""What the studio's sliders foretell, held against the models that come of it: milliseconds, score, and how promptly.

    python -m benchmarks.studio.foresight [--networks digits ...] [--plans 100] [--parts score ms answer] [--out DIR]

Plans are drawn by chance: as many changes as an exponent drawn evenly says, each a narrower width or a block less, by
other seeds than the studio's own measurements. Each is made by the recipe that the studio writes for it, without
training: `set_structure`, and new statistics for batch normalization. Its file is scored on the test data, which the
studio never reads, and timed in turns with the network's own. A plan that the model does not survive is told and
another is drawn. What is done is not done again; times want a quiet machine.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.data import cifar, references
from benchmarks.stored import RESULTS, load
from compressor.errors import StageError
from compressor.files.export import export_onnx
from compressor.inspection.inspection import look
from compressor.intervals import paired_drop
from compressor.kept_state import private_copy
from compressor.machine import environment
from compressor.measuring.measure import score_rows
from compressor.measuring.timing import Timing, time_interleaved
from compressor.pruning.choice.costs import block_key
from compressor.stage import Context
from compressor.storage import read_json, sha256, write_atomic, write_json
from compressor.studio.choice import Choice, Free
from compressor.studio.events import Broadcast
from compressor.studio.foresight.sensitivities import drawn_state
from compressor.studio.planning import Planning
from compressor.studio.whatif import WhatIf
from compressor.target import Target
from compressor.workload import Workload, resize_batch
from compressor.workloads import load as load_workload

RESULT = RESULTS / "studio.json"
NETWORKS: dict[str, Callable[[], Workload]] = {
    "digits": lambda: load_workload("digits"),
    "resnet20": cifar.resnet20,
    "mobilenetv2": references.mobilenetv2,
    "transformer": references.transformer,
}
PARTS = ("score", "ms", "answer")
# The network whose sliders have to answer in 50 ms, and how often it is asked.
ANSWERING, ASKED = cifar.resnet56, 200
# The studio draws its own plans by smaller seeds.
_SEEDS = 1000
_MOST_SECONDS = 3600
# Of plans that a model does not survive, so many in a row end a network.
_MOST_REFUSED = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--plans", type=int, default=100, help="of all networks together")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing a file")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/studio"))
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    target = Target()
    stored: dict[str, Any] = (load("studio") if arguments.result == RESULT else None) or {}
    networks: dict[str, Any] = dict(stored.get("networks", {}))
    answer = stored.get("answer")
    where = dict(stored.get("environments", {}))
    for name in arguments.networks:
        if set(arguments.parts) & {"score", "ms"}:
            networks[name] = one_network(name, target, arguments)
    for part in arguments.parts:
        where[part] = environment(target)
    if "answer" in arguments.parts:
        answer = answered(ANSWERING(), target, arguments.out / "resnet56")
        print(f"answers: median {answer['median_ms']:.1f} ms, 99 % within {answer['p99_ms']:.1f} ms of the processor")
    rows = [row for network in networks.values() for row in network["plans"]]
    result = {
        "benchmark": "studio",
        "environments": where,
        "networks": networks,
        "summary": summary(rows),
        "answer": answer,
    }
    write_json(arguments.result, result)
    print(result["summary"])
    print(f"stored in {arguments.result}")


def one_network(name: str, target: Target, asked: argparse.Namespace) -> dict[str, Any]:
    """The plans of a network with what was foretold and what came of them."""
    workload = NETWORKS[name]()
    folder = asked.out / name
    folder.mkdir(parents=True, exist_ok=True)
    file = export_onnx(workload.model, workload).onnx_bytes
    whatif = WhatIf(workload, target, look(workload, target=target), file, out=folder, kept="losses")
    known = whatif.sensitivities(Choice().criterion)
    while known.step():
        print(f"{name}: {known.done} of {known.total} measured", flush=True)
    # Weights decide what plans come to.
    path = folder / f"plans-{sha256(file)[:12]}.json"
    rows: list[dict[str, Any]] = read_json(path) if path.exists() else []
    share = -(-asked.plans // len(asked.networks))
    base = None
    seed = _SEEDS
    refused = 0
    for number in range(share):
        row = next((row for row in rows if row["number"] == number), None)
        while row is None:
            choice = chosen(drawn_state(seed, whatif.free.widths, whatif.free.blocks), whatif.free)
            seed += 1
            if (made := made_of(choice, whatif.free, workload, target)) is None:
                refused += 1
                if refused > _MOST_REFUSED:
                    raise StageError(f"{name} survives none of {refused} plans in a row")
                continue
            row = {"number": number, "seed": seed - 1, "choice": choice.to_json(), "refused": refused}
            write_atomic(folder / f"plan-{number}.onnx", made)
            rows.append(row)
        seed, refused = row["seed"] + 1, 0
        choice = Choice.from_json(row["choice"], whatif.free)
        made = (folder / f"plan-{number}.onnx").read_bytes()
        if "score" in asked.parts and "drop" not in row:
            if base is None:
                base = score_rows(file, workload.test, workload.metric)
            rows_made = score_rows(made, workload.test, workload.metric)
            row |= {"drop": asdict(paired_drop(rows_made, base, workload.metric)), "samples": len(base)}
        if "drop" in row:
            row |= foretold_drop(choice, row["drop"]["value"], whatif)
        if "ms" in asked.parts and "measured_ms" not in row:
            row |= timed(choice, made, file, whatif, _timing(workload, target, asked.seconds))
        write_json(path, rows)
        print_row(name, row)
    kept = sorted(rows, key=lambda row: row["number"])[:share]
    return {"workload": workload.name, "steps": known.total, "plans": kept, "summary": summary(kept)}


def chosen(state: dict[str, int], free: Free) -> Choice:
    """The choice that a drawn state is, in float and without training."""
    return Choice(
        widths={name: state[name] for name, options in free.widths.items() if state[name] < options[0]},
        drop=tuple(name for name in free.blocks if not state[block_key(name)]),
        epochs=0,
    )


def made_of(choice: Choice, free: Free, workload: Workload, target: Target) -> bytes | None:
    """The file that the choice's recipe makes; None where the model does not survive it."""
    recipe = choice.recipe(free, target)
    model = private_copy(workload.model)
    try:
        for stage in recipe.stages if recipe is not None else ():
            model = stage.apply(model, workload, Context(progress=False, target=target, seed=recipe.seed))
    except StageError as error:
        print(f"  not survived: {error}", flush=True)
        return None
    return export_onnx(model, workload).onnx_bytes


def foretold_drop(choice: Choice, drop: float, whatif: WhatIf) -> dict[str, Any]:
    """The drop as it is foretold, with its 90 % interval, and whether the one on test data lies in it."""
    foretold = whatif.forecast(choice)
    assert foretold is not None
    return {"foretold": asdict(foretold), "inside": foretold.low <= drop <= foretold.high}


def _timing(workload: Workload, target: Target, seconds: float) -> Callable[[bytes, bytes], Timing]:
    inputs = resize_batch(workload.example_inputs, target.batch_size)
    return partial(time_interleaved, inputs=inputs, threads=target.threads, seconds=seconds)


def timed(
    choice: Choice, made: bytes, file: bytes, whatif: WhatIf, timing_of: Callable[[bytes, bytes], Timing]
) -> dict[str, Any]:
    """Milliseconds as foretold with the table filled, and as timed in turns with the network's own file.

    `error_of_ratio` is that of the speed-up: what the machine does to both files cancels.
    """
    first = whatif.numbers(choice)
    while whatif.time_wanted():
        pass
    foretold = whatif.numbers(choice)
    assert foretold.ms is not None
    assert whatif.reference.ms is not None
    timing = timing_of(made, file)
    return {
        "ms": foretold.ms,
        "prompt_ms": first.ms,
        "was_rough": first.rough,
        "measured_ms": asdict(timing.candidate_ms),
        "error": foretold.ms / timing.candidate_ms.value - 1,
        "error_of_ratio": foretold.ms / whatif.reference.ms * timing.speedup.value - 1,
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The shares and medians over `rows`, of those that have them."""
    inside = [row["inside"] for row in rows if "inside" in row]
    widths = [row["foretold"]["high"] - row["foretold"]["low"] for row in rows if "foretold" in row]
    found: dict[str, Any] = {"plans": len(rows), "refused": sum(row["refused"] for row in rows)}
    if inside:
        off = [abs(row["foretold"]["value"] - row["drop"]["value"]) for row in rows if "drop" in row]
        found |= {
            "scored": len(inside),
            "inside": sum(inside) / len(inside),
            "median_width": statistics.median(widths),
            "median_off": statistics.median(off),
        }
    for key in ("error", "error_of_ratio"):
        errors = [abs(row[key]) for row in rows if key in row]
        if errors:
            found |= {"timed": len(errors), f"median_{key}": statistics.median(errors), f"largest_{key}": max(errors)}
    return found


def answered(workload: Workload, target: Target, folder: Path) -> dict[str, Any]:
    """How long the server takes from a slider's place to its numbers, with the table filled: of the thread's own time.

    Every answer is that of a page's request as the server makes it, parsed and rendered.
    """
    file = export_onnx(workload.model, workload).onnx_bytes
    planning = Planning(workload, workload.name, target, folder, Broadcast())
    folder.mkdir(parents=True, exist_ok=True)
    planning.begin(look(workload, target=target), file)
    _settled(planning)
    whatif = planning.whatif
    requests = []
    for seed in range(ASKED):
        state = drawn_state(_SEEDS + seed, whatif.free.widths, whatif.free.blocks)
        requests.append(chosen(state, whatif.free).to_json())
    for request in requests:
        whatif.numbers(planning.read(request))
    planning.wake()
    _settled(planning)
    cpu, wall = [], []
    for request in requests:
        start, began = time.thread_time(), time.perf_counter()
        planning.tried(planning.read(request))
        cpu.append(1000 * (time.thread_time() - start))
        wall.append(1000 * (time.perf_counter() - began))
    planning.end()
    cpu.sort()
    return {
        "workload": workload.name,
        "widths": len(whatif.free.widths),
        "blocks": len(whatif.free.blocks),
        "asked": len(cpu),
        "median_ms": statistics.median(cpu),
        "p99_ms": cpu[int(0.99 * (len(cpu) - 1))],
        "largest_ms": cpu[-1],
        "median_wall_ms": statistics.median(wall),
    }


def _settled(planning: Planning) -> None:
    """Everything beside the page is measured. Raises TimeoutError where that takes more than an hour."""
    if not planning.settle(_MOST_SECONDS):
        raise TimeoutError(f"not all was measured within {_MOST_SECONDS} s; run it again, what was measured is kept")
    if planning.unmeasured:
        raise RuntimeError(planning.unmeasured)


def print_row(name: str, row: dict[str, Any]) -> None:
    words = [f"{name} {row['number']}"]
    if "drop" in row:
        told = row["foretold"]
        words.append(
            f"drop {row['drop']['value']:.3f}, foretold {told['value']:.3f} [{told['low']:.3f}, {told['high']:.3f}]"
            f"{'' if row['inside'] else ' OUTSIDE'}"
        )
    if "error" in row:
        words.append(f"{row['measured_ms']['value']:.3g} ms, foretold {row['ms']:.3g} ({row['error']:+.1%})")
    print("; ".join(words), flush=True)


if __name__ == "__main__":
    main()
