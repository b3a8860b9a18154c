"""One network by every technique, with the same training after each: accuracy, size, size after zstd, latency.

    python -m benchmarks.techniques [--rows 2:4 ...] [--epochs 5] [--images 10000] [--clock wall] [--out DIR]

ResNet-20 on CIFAR-10. Every technique is one or two stages, followed by the same distillation: the same images, epochs,
optimizer and rate. Each becomes a float32 file, by `Quantize()` an 8-bit one, and, where weights share values, a
float32 one with codebooks. The files are stored, one row after the other, so that a killed run goes on where it was; in
the end all of them are judged on test images that no decision has read, and timed in one pass, each interleaved with
the dense float32 file. `--clock thread` times by the seconds that the calling thread has on the CPU: for a machine that
others use meanwhile.
"""

import argparse
import copy
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.arms import described, slug
from benchmarks.data import cifar
from benchmarks.stored import RESULTS
from compressor.clustering.codebook_files import with_codebooks
from compressor.files.export import export_onnx
from compressor.intervals import paired_drop, score_estimate
from compressor.machine import environment
from compressor.measuring import timing
from compressor.measuring.measure import compressed_size, count_macs, count_parameters, score_rows
from compressor.stage import Context, Stage
from compressor.stages import (
    SGD,
    ClusterWeights,
    Distill,
    DropBlocks,
    FactorizeLayers,
    Macs,
    MergeSimilar,
    PruneChannels,
    Quantize,
    SemiStructured,
    SparsifyWeights,
)
from compressor.storage import read_json, write_atomic, write_json
from compressor.target import Target
from compressor.workload import Workload, first_batches, resize_batch

RESULT = RESULTS / "techniques.json"
DENSE, TAUGHT = "dense", "dense, distilled"
FLOAT, INTEGER, CODEBOOKS = "float32", "int8", "codebooks"
SEED = 0
# Batches of images that decide which epoch is kept.
JUDGING = 8
ROWS: dict[str, tuple[Stage, ...]] = {
    TAUGHT: (),
    "channels pruned": (PruneChannels(target=Macs(0.5)),),
    "blocks dropped": (DropBlocks(remove=0.5),),
    "channels merged": (MergeSimilar(remove=0.25),),
    "low rank": (FactorizeLayers(target=Macs(0.7)),),
    "unstructured zeros": (SparsifyWeights(sparsity=0.8),),
    "2:4 zeros": (SparsifyWeights(pattern=SemiStructured(n=2, m=4)),),
    "shared values": (ClusterWeights(clusters=16),),
    "zeros and shared values": (SparsifyWeights(sparsity=0.8), ClusterWeights(clusters=16)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=4.0, help="time spent on timing one file")
    parser.add_argument("--clock", choices=["wall", "thread"], default="wall")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/techniques"))
    arguments = parser.parse_args()
    workload = cifar.around(cifar.resnet20().model, "cifar10-resnet20", train_images=arguments.images)
    # Epochs are short here: all judging images would cost more than the training.
    workload = replace(workload, validation=first_batches(workload.validation, JUDGING))
    training = Distill(epochs=arguments.epochs, tail_epochs=0, optimizer=SGD(rate=0.01))
    arguments.out.mkdir(parents=True, exist_ok=True)
    made(DENSE, (), None, workload, arguments.out)
    for label in arguments.rows:
        made(label, ROWS[label], training, workload, arguments.out)
    if arguments.clock == "thread":
        timing.perf_counter = time.thread_time
    result = {
        "benchmark": "techniques",
        "network": workload.name,
        "clock": arguments.clock,
        "images": arguments.images,
        "training": repr(training),
        "epochs": arguments.epochs,
        **judged(workload, arguments.out, seconds=arguments.seconds),
    }
    write_json(RESULT, result)
    print_table(result)
    print(f"stored in {RESULT}")


def made(label: str, stages: tuple[Stage, ...], training: Stage | None, workload: Workload, out: Path) -> None:
    """Writes both files of a row and what is told of it, unless they are there."""
    facts = out / f"{slug(label)}.json"
    if facts.exists():
        return
    chain = stages if training is None else (*stages, training)
    started = time.perf_counter()
    row: dict[str, Any] = {"label": label, "stages": [repr(stage) for stage in stages], "error": None}
    try:
        model, context = by_stages(chain, workload, out / slug(label))
        write_atomic(path_of(out, label, FLOAT), export_onnx(model.eval(), workload).onnx_bytes)
        integers = Quantize().apply(model, workload, context)
        write_atomic(path_of(out, label, INTEGER), integers.onnx_bytes)
    except Exception as error:  # noqa: BLE001 - one row that fails leaves the others
        row["error"] = described(error)
    write_json(facts, {**row, "seconds": time.perf_counter() - started})
    print(f"{label}: {row['error'] or 'made'}, {time.perf_counter() - started:.0f} s", flush=True)


def by_stages(chain: tuple[Stage, ...], workload: Workload, folder: Path) -> tuple[nn.Module, Context]:
    """The model after all stages, and what the next one is given."""
    model, plan = copy.deepcopy(workload.model), ()
    for number, stage in enumerate(chain):
        context = Context(seed=SEED, folder=folder / str(number), plan_before=plan)
        model = stage.apply(model, workload, context)
        plan += tuple(context.plan)
    return model, Context(seed=SEED, folder=folder / "quantize", plan_before=plan)


def path_of(out: Path, label: str, form: str) -> Path:
    return out / f"{slug(label)}-{form}.onnx"


def judged(workload: Workload, out: Path, *, seconds: float) -> dict[str, Any]:
    """Every stored file: scored, weighed, and timed against the dense float32 file, all in one pass."""
    target = Target()
    dense = path_of(out, DENSE, FLOAT).read_bytes()
    reference = score_rows(dense, workload.test, workload.metric, threads=1)
    rows: dict[str, dict[str, Any]] = {}
    for label in (DENSE, *ROWS):
        facts = out / f"{slug(label)}.json"
        if facts.exists():
            rows[label] = read_json(facts)
    for label, row in rows.items():
        if row["error"] is not None:
            continue
        stored, books = with_codebooks(path_of(out, label, FLOAT).read_bytes())
        if books:
            write_atomic(path_of(out, label, CODEBOOKS), stored)
    files = {
        (label, form): path_of(out, label, form).read_bytes()
        for label in rows
        for form in (FLOAT, INTEGER, CODEBOOKS)
        if path_of(out, label, form).exists()
    }
    for (label, form), file in files.items():
        scores = score_rows(file, workload.test, workload.metric, threads=1)
        parameters, nonzero = count_parameters(file)
        rows[label][form] = {
            "accuracy": asdict(score_estimate(scores, workload.metric)),
            "drop": asdict(paired_drop(scores, reference, workload.metric)),
            "macs": count_macs(file, workload.example_inputs),
            "parameters": parameters,
            "nonzero_parameters": nonzero,
            "size_bytes": len(file),
            "compressed_bytes": compressed_size(file),
        }
    inputs = resize_batch(workload.example_inputs, target.batch_size)
    where = environment(target)
    for (label, form), file in files.items():
        timed = timing.time_interleaved(file, dense, inputs, threads=target.threads, seed=SEED, seconds=seconds)
        rows[label][form] |= {"speedup": asdict(timed.speedup), "latency_ms": asdict(timed.candidate_ms)}
    return {
        "environment": where,
        "test_images": len(reference),
        "metric": workload.metric.name,
        "rows": list(rows.values()),
    }


def print_table(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        if row["error"] is not None:
            print(f"{row['label']:26s} {row['error']}")
        for form in (FLOAT, INTEGER, CODEBOOKS):
            if form not in row:
                continue
            found = row[form]
            drop, speedup = found["drop"], found["speedup"]
            print(
                f"{row['label']:26s} {form:9s} {100 * found['accuracy']['value']:6.2f} %, drop "
                f"{100 * drop['value']:5.2f} [{100 * drop['low']:.2f}, {100 * drop['high']:.2f}], "
                f"{found['size_bytes'] / 1024:7.1f} KiB, {found['compressed_bytes'] / 1024:7.1f} after zstd, "
                f"{speedup['value']:.2f}x [{speedup['low']:.2f}, {speedup['high']:.2f}]"
            )


if __name__ == "__main__":
    main()
