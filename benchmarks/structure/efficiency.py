"""What half of the multiplications is worth in milliseconds: compressor's structure stages beside Torch-Pruning.

    python -m benchmarks.structure.efficiency [--networks resnet56 vgg16 mobilenetv2 ...] [--out DIR] [--seconds 4]

Latency efficiency is the measured speed-up over the ratio of multiply-accumulates, both against the dense network in
the same precision, the multiply-accumulates counted on the ONNX graphs. Every file is timed interleaved with the dense
file, one thread, batch 1. Only time is judged here: nothing is trained after pruning, and the references of all but
ResNet-56 are trained briefly, so that scores mean something. What is done is not done again; `--again` forgets it.
"""

import argparse
import copy
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from torch import nn
from tqdm import tqdm

from benchmarks.arms import described, slug
from benchmarks.data import cifar, references
from benchmarks.peers import usual_tools
from benchmarks.stored import RESULTS
from compressor import Target
from compressor.files.export import export_onnx
from compressor.machine import environment
from compressor.measuring.macs import count_macs
from compressor.measuring.timing import time_interleaved
from compressor.runtime import OnnxModule
from compressor.stage import Context, Stage
from compressor.stages import DropBlocks, PruneChannels, Quantize
from compressor.storage import read_json, write_atomic, write_json
from compressor.workload import Workload, resize_batch

RESULT = RESULTS / "structure.json"
SEED = 0
DENSE = "dense"

# An arm makes the pruned network of a workload; its context collects what it tells.
Arm = Callable[[Workload, Context], nn.Module]


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "resnet56": cifar.resnet56,
    "vgg16": references.vgg16,
    "mobilenetv2": references.mobilenetv2,
    "lstm": references.lstm,
    "transformer": references.transformer,
}
# Without blocks there is nothing to weigh against widths; the recurrent layer that may go is nearly two thirds of all.
WITHOUT_BLOCKS = {"vgg16", "lstm"}
# A search by milliseconds takes many minutes where there are so many groups; the count of MACs needs no table.
BY_COUNT_ALONE = {"mobilenetv2"}
# What is asked for, so that the 0.9 that are aimed at survive the error of the prediction.
EFFICIENCY = 0.95
# The share of the blocks whose removal halves the multiplications, or more where there is but one: of two recurrent
# layers the second.
BLOCKS_ALONE = {"resnet56": 0.52, "transformer": 0.5, "lstm": 0.5}


def arms(network: str) -> dict[str, Arm]:
    """The arms of `network` by label, in the order of the table."""
    from compressor.pruning.choice.targets import Latency, Macs
    from compressor.stages.structure_shrinking import ShrinkStructure

    # Only time is judged here: losses from fewer images do.
    choose = PruneChannels if network in WITHOUT_BLOCKS else partial(ShrinkStructure, batches=2, rounds=3)
    name = "PruneChannels" if network in WITHOUT_BLOCKS else "ShrinkStructure"
    found = {
        f"{name}, Macs(0.5)": by_stage(choose(target=Macs(0.5))),
        f"{name}, Macs(0.5, efficiency={EFFICIENCY})": by_stage(choose(target=Macs(0.5, efficiency=EFFICIENCY))),
    }
    if network not in BY_COUNT_ALONE:
        found[f"{name}, Latency(0.5)"] = by_stage(choose(target=Latency(0.5)))
        found[f"{name}, Latency(0.5, int8)"] = by_stage(choose(target=Latency(0.5, form="int8")))
    if network in BLOCKS_ALONE:
        share = BLOCKS_ALONE[network]
        found[f"DropBlocks, {share:g}"] = by_stage(DropBlocks(remove=share))
    return found | peer_arms()


def peer_arms() -> dict[str, Arm]:
    """Torch-Pruning at half of the multiply-accumulates, plain and with widths that are multiples of 8."""
    return {"Torch-Pruning": by_torch_pruning(None), "Torch-Pruning, round_to=8": by_torch_pruning(8)}


def by_stage(stage: Stage) -> Arm:
    def arm(workload: Workload, context: Context) -> nn.Module:
        return stage.apply(copy.deepcopy(workload.model), workload, context)

    return arm


def by_torch_pruning(round_to: int | None) -> Arm:
    def arm(workload: Workload, context: Context) -> nn.Module:
        del context
        return usual_tools.prune_to_macs(workload.model, workload.example_inputs, ratio=2.0, round_to=round_to)

    return arm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--out", type=Path, default=Path("runs/bench/structure"))
    parser.add_argument("--seconds", type=float, default=4.0, help="time for one comparison of two files")
    parser.add_argument("--arms", nargs="+", help="only labels that hold one of these texts; other rows stay as stored")
    parser.add_argument("--again", action="store_true", help="prune again, even what is there")
    arguments = parser.parse_args()
    if arguments.again:
        for network in arguments.networks:
            shutil.rmtree(arguments.out / network, ignore_errors=True)
    stored = read_json(RESULT)["networks"] if RESULT.exists() else {}
    for network in arguments.networks:
        workload, target = WORKLOADS[network](), Target()
        where = environment(target)
        chosen = arms(network)
        order = [DENSE, *chosen]
        if arguments.arms:
            chosen = {label: arm for label, arm in chosen.items() if any(text in label for text in arguments.arms)}
        rows = run(workload, chosen, arguments.out / network, target=target, seconds=arguments.seconds)
        if arguments.arms:
            rows = stored.get(network, {}).get("rows", {}) | rows
            rows = {label: rows[label] for label in order if label in rows}
        stored[network] = {"environment": where, "rows": rows}
        if network == "lstm":
            stored[network]["kernel"] = recurrent_kernel(workload, target)
        ordered = {name: stored[name] for name in WORKLOADS if name in stored}
        write_json(RESULT, {"benchmark": "structure", "seconds": arguments.seconds, "networks": ordered})
        print_table(network, rows)
    print(f"stored in {RESULT}")


def run(workload: Workload, arms: dict[str, Arm], folder: Path, *, target: Target, seconds: float) -> dict[str, dict]:
    """The row of every arm by label: all files are made first, then timed in one go."""
    for label, arm in tqdm({DENSE: None, **arms}.items(), desc=workload.name, unit="arm"):
        make(label, arm, workload, folder / slug(label), target)
    dense = {form: (folder / DENSE / f"{form}.onnx").read_bytes() for form in ("float32", "int8")}
    inputs = resize_batch(workload.example_inputs, target.batch_size)
    dense_macs = count_macs(dense["float32"], workload.example_inputs)

    def speedup(file: bytes, base: bytes) -> dict:
        timing = time_interleaved(file, base, inputs, threads=target.threads, seed=SEED, seconds=seconds)
        return {
            "speedup": asdict(timing.speedup),
            "latency_ms": asdict(timing.candidate_ms),
            "base_ms": asdict(timing.reference_ms),
        }

    rows = {DENSE: {"macs": dense_macs, "int8_over_float32": speedup(dense["int8"], dense["float32"])}}
    for label in tqdm(arms, desc=f"{workload.name}: timing", unit="arm"):
        facts = read_json(folder / slug(label) / "facts.json")
        rows[label] = row = {"seconds": facts["seconds"], "error": facts["error"], "details": facts["details"]}
        if facts["error"] is not None:
            continue
        files = {form: (folder / slug(label) / f"{form}.onnx").read_bytes() for form in facts["forms"]}
        row["macs"] = count_macs(files["float32"], workload.example_inputs)
        row["macs_ratio"] = dense_macs / row["macs"]
        row["int8_error"] = facts["int8_error"]
        for form, file in files.items():
            row[form] = speedup(file, dense[form])
            row[form]["efficiency"] = row[form]["speedup"]["value"] / row["macs_ratio"]
        if "int8" in files:
            row["int8_over_float32"] = speedup(files["int8"], dense["float32"])
    return rows


def make(label: str, arm: Arm | None, workload: Workload, folder: Path, target: Target) -> None:
    """Writes the arm's files and facts.json to `folder`, unless they are there; a failure is a fact, too."""
    if (folder / "facts.json").exists():
        return
    context = Context(seed=SEED, target=target, progress=False)
    facts = {"label": label, "error": None, "int8_error": None, "forms": []}
    started = time.perf_counter()
    try:
        model = workload.model if arm is None else arm(workload, context)
        facts["seconds"] = time.perf_counter() - started
        file = export_onnx(model.eval(), workload).onnx_bytes
        write_atomic(folder / "float32.onnx", file)
        facts["forms"].append("float32")
    except Exception as error:  # noqa: BLE001 - whatever a pruner raises belongs into the table
        facts |= {"error": described(error), "seconds": time.perf_counter() - started}
    else:
        try:
            quiet = Context(seed=SEED, target=target, progress=False)
            quantized = Quantize().apply(OnnxModule(file), workload, quiet)  # the file that is there, not another
            write_atomic(folder / "int8.onnx", quantized.onnx_bytes)
            facts["forms"].append("int8")
        except Exception as error:  # noqa: BLE001 - the same
            facts["int8_error"] = described(error)
    if arm is None and len(facts["forms"]) < 2:
        raise RuntimeError(f"{workload.name} itself does not work: {facts['error'] or facts['int8_error']}")
    write_json(folder / "facts.json", facts | {"details": context.details})


def recurrent_kernel(workload: Workload, target: Target) -> dict:
    """What two stacked LSTM layers alone take by the latency table: milliseconds and products at every 16th width."""
    from compressor.latency.operators import recurrent as layer
    from compressor.latency.table import LatencyTable

    whole, (steps, bands) = workload.model.recurrent.hidden_size, workload.example_inputs.shape[1:]
    table, found = LatencyTable(target), {"macs": {}, "float32": {}, "int8": {}}
    for width in range(64, whole + 1, 16):
        layers = [layer("lstm", bands, width, steps), layer("lstm", width, width, steps)]
        found["macs"][str(width)] = sum(operator.macs for operator in layers)
        for form in ("float32", "int8"):
            found[form][str(width)] = table.total(layers, form)
    return found


def asked_and_achieved(network: str, rows: dict[str, dict]) -> list[dict]:
    """For the arms that were asked for half of the time: asked, achieved and in which form."""
    found = []
    for label, row in rows.items():
        form = "int8" if "int8)" in label else "float32"
        if "Latency(0.5" in label and form in row:
            achieved = {name: 1 / row[form]["speedup"][other] for name, other in _INVERSE.items()}
            found.append({"network": network, "label": label, "form": form, "asked": 0.5, "achieved": achieved})
    return found


_INVERSE = {"value": "value", "low": "high", "high": "low"}


def print_table(network: str, rows: dict[str, dict]) -> None:
    print(f"\n{network}: {rows[DENSE]['macs'] / 1e6:.1f} M multiply-accumulates dense")
    print(f"{'arm':40s} {'MACs':>6s} {'fp32':>20s} {'per MAC':>8s} {'int8':>20s} {'per MAC':>8s} {'seconds':>8s}")
    for label, row in rows.items():
        if label == DENSE:
            continue
        if row["error"] is not None:
            print(f"{label:40s} {row['error']}")
            continue
        cells = [f"{label:40s} {row['macs_ratio']:5.2f}x"]
        for form in ("float32", "int8"):
            if form in row:
                ratio = row[form]["speedup"]
                spread = f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
                cells.append(f"{spread:>20s} {row[form]['efficiency']:8.2f}")
            else:
                cells.append(f"{'failed':>20s} {'':8s}")
        print(*cells, f"{row['seconds']:8.1f}")
    for entry in asked_and_achieved(network, rows):
        value = entry["achieved"]
        print(
            f"{entry['label']}: {value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}] of the time, asked 0.5"
        )


if __name__ == "__main__":
    main()
