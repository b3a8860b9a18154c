"""ResNet-56 as small as it travels: blocks dropped and taught again, then zeros, then few bits, then packed.

    python -m benchmarks.packing.residual [--arms ...] [--epochs 36] [--images N] [--validate] [--out DIR]

Every arm is a chain of stages; what chains begin with in common is worked once. Files are packed, unpacked to the very
bytes, and timed interleaved with the network's own fp32 file. Accuracies are of the half of the test images that
nothing has read, with the paired drop from the fp32 file; `--validate` tells of the other half alone, which decides.
Named are the smallest file of each limit on validation. A killed run goes on where it was.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.arms import slug
from benchmarks.data import cifar
from benchmarks.packing.coder import graph_bytes, order_0
from benchmarks.stored import RESULTS
from compressor.files.export import export_onnx
from compressor.intervals import paired_drop
from compressor.machine import environment
from compressor.measuring.measure import measure, score_rows
from compressor.packing.files import pack, unpack
from compressor.running.pipeline import Pipeline
from compressor.running.session import Session
from compressor.stage import Stage
from compressor.stages import SGD, Distill, DropBlocks, QuantizationAwareTraining, Quantize, SparsifyWeights, Symmetric
from compressor.storage import write_atomic, write_json
from compressor.store.kept import Store
from compressor.target import Target
from compressor.workload import Workload, first_batches

RESULT = RESULTS / "packing-residual.json"
# Points that a file may lose on validation to be named.
LIMITS = (0.005, 0.010)
# Blocks dropped, zeros among the weights that are left, and bits of a weight.
ARMS = {
    "75 % of the blocks, 8 bits": (0.75, 0.0, 8),
    "75 % of the blocks, 4 bits": (0.75, 0.0, 4),
    "75 % of the blocks, 50 % zeros, 8 bits": (0.75, 0.5, 8),
    "75 % of the blocks, 50 % zeros, 4 bits": (0.75, 0.5, 4),
    "75 % of the blocks, 60 % zeros, 4 bits": (0.75, 0.6, 4),
    "50 % of the blocks, 4 bits": (0.5, 0.0, 4),
    "50 % of the blocks, 60 % zeros, 4 bits": (0.5, 0.6, 4),
    "50 % of the blocks, 80 % zeros, 4 bits": (0.5, 0.8, 4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--epochs", type=int, default=36, help="of the training after blocks were dropped")
    parser.add_argument("--images", type=int, default=None, help="training images; by default all")
    parser.add_argument("--batches", type=int, default=None, help="batches of both halves; by default all")
    parser.add_argument("--validate", action="store_true", help="tells validation alone, and stores nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/packing/resnet56"))
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    teacher = cifar.resnet56().model
    workload = cifar.around(teacher, "cifar10-resnet56", train_images=arguments.images)
    if arguments.batches is not None:
        halves = {part: first_batches(getattr(workload, part), arguments.batches) for part in ("validation", "test")}
        workload = replace(workload, **halves)
    reference = _reference(workload, arguments.out)
    rows: dict[str, dict[str, Any]] = {}
    for arm in arguments.arms:
        rows[arm] = one_arm(arm, workload, reference, arguments)
        print_row(arm, rows[arm])
        if not arguments.validate:
            write_json(arguments.result, _result(rows, workload, arguments))


def stages_of(arm: str, epochs: int) -> list[Stage]:
    """The chain of an arm; trainings after the first take a third of its `epochs`."""
    remove, sparsity, bits = ARMS[arm]
    shorter, rate = max(1, epochs // 3), SGD(rate=0.06)
    found: list[Stage] = [
        DropBlocks(remove=remove),
        Distill(epochs=epochs, optimizer=rate, temperature=4.0, views=max(1, epochs // 4)),
    ]
    if sparsity:
        taught = Distill(epochs=shorter, optimizer=SGD(rate=0.02), temperature=4.0, views=max(1, epochs // 4))
        found += [SparsifyWeights(sparsity=sparsity), taught]
    if bits == 8:
        return [*found, Quantize()]
    return [*found, QuantizationAwareTraining(weights=Symmetric(bits=bits), epochs=max(1, epochs // 6))]


def one_arm(arm: str, workload: Workload, reference: bytes, asked: argparse.Namespace) -> dict[str, Any]:
    """The file of an arm and its packed form, in numbers."""
    folder = asked.out / slug(arm)
    session = Session(store=Store(asked.out / "store"))
    result = Pipeline(stages_of(arm, asked.epochs)).run(workload, out=folder, seed=0, session=session)
    data = result.artifact.path.read_bytes()
    made = pack(result.artifact.path, folder / "model.pack")
    unpack(made.path, folder / "unpacked.onnx")
    graph, (count, entropy) = graph_bytes(made.path.read_bytes()), order_0(data)
    found = {
        "size_bytes": len(data),
        "packed_bytes": made.packed_bytes,
        "graph_bytes": graph,
        "identical": (folder / "unpacked.onnx").read_bytes() == data,
        "times_smaller": dense_bytes(workload) / made.packed_bytes,
        "weights": count,
        "bits_a_weight": 8 * (made.packed_bytes - graph) / count,
        "of_order_0": (made.packed_bytes - graph) / entropy,
        "seconds": sum(step.seconds for step in result.report.steps),
        "validation_drop": _drop(data, reference, workload, workload.validation),
    }
    if asked.validate:
        return found
    measured = measure(
        data,
        reference=reference,
        data=workload.test,
        metric=workload.metric,
        example_inputs=workload.example_inputs,
        target=Target(),
    )
    drop = _drop(data, reference, workload, workload.test)
    return found | {"drop": drop, "score": asdict(measured.score), "speedup": asdict(measured.speedup)}


def dense_bytes(workload: Workload) -> int:
    """The bytes of the network's weights in float32."""
    return 4 * sum(parameter.numel() for parameter in workload.model.parameters())


def _drop(data: bytes, reference: bytes, workload: Workload, images: Any) -> dict[str, float]:
    own, base = (score_rows(file, images, workload.metric, threads=1) for file in (data, reference))
    return asdict(paired_drop(own, base, workload.metric))


def _reference(workload: Workload, out: Path) -> bytes:
    path = out / "reference.onnx"
    if not path.exists():
        write_atomic(path, export_onnx(workload.model, workload).onnx_bytes)
    return path.read_bytes()


def _result(rows: dict[str, dict[str, Any]], workload: Workload, asked: argparse.Namespace) -> dict[str, Any]:
    return {
        "benchmark": "packing-residual",
        "environment": environment(Target()),
        "epochs": asked.epochs,
        "images": asked.images or len(cifar.read("train")[1]),
        "test_images": sum(len(targets) for _, targets in workload.test),
        "dense_weights_bytes": dense_bytes(workload),
        "rows": rows,
        "chosen": {f"{100 * limit:.1f}": chosen(rows, limit) for limit in LIMITS},
    }


def chosen(rows: dict[str, dict[str, Any]], limit: float) -> str | None:
    """The arm with the smallest packed file of those that lose at most `limit` on validation; None where none does."""
    within = [arm for arm, row in rows.items() if row["validation_drop"]["value"] <= limit]
    return min(within, key=lambda arm: rows[arm]["packed_bytes"], default=None)


def print_row(arm: str, row: dict[str, Any]) -> None:
    told = " ".join(
        f"{label} {100 * row[key]['value']:.2f} [{100 * row[key]['low']:.2f}, {100 * row[key]['high']:.2f}];"
        for key, label in (("validation_drop", "validation drop"), ("drop", "drop"))
        if key in row
    )
    speed = f" {row['speedup']['value']:.2f}x faster;" if "speedup" in row else ""
    print(
        f"{arm}: {row['size_bytes']:,} -> {row['packed_bytes']:,} bytes, {row['times_smaller']:.1f}x below the dense "
        f"weights, {row['bits_a_weight']:.2f} bits a weight, graph {row['graph_bytes']:,};{speed} {told} "
        f"{row['seconds'] / 60:.1f} min",
        flush=True,
    )


if __name__ == "__main__":
    main()
