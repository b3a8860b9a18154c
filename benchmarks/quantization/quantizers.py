"""Quantized files of compressor beside those of ONNX Runtime's quantizer, NNCF and AIMET, measured in one run.

    python -m benchmarks.quantization.quantizers [--networks resnet20 resnet56 mobilenetv2 lstm ...] [--out DIR]

Every file is timed interleaved with the network's fp32 file, one thread, batch 1; the drop is paired, image by image.
Calibration and every learned rounding read training data, 512 samples. What chooses something reads the validation
half of CIFAR-10's test images, so two drops stand there: over all 10,000 images, and over the 5,000 that nothing reads.
NNCF and AIMET run in environments of their own (`make bench-quantization` sets them up); where one is missing its rows
say so. What is done is not done again; `--again` forgets it.
"""

import argparse
import copy
import json
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.arms import slug
from benchmarks.data import cifar, mobilenet, references
from benchmarks.peers import usual_tools
from benchmarks.stored import RESULTS
from compressor import Target
from compressor.intervals import paired_drop
from compressor.machine import environment
from compressor.measuring.measure import score_rows
from compressor.measuring.timing import time_interleaved
from compressor.quantization.file.compact_graph import kernels
from compressor.stage import Context, Stage
from compressor.storage import read_json, write_atomic, write_json
from compressor.workload import Workload, batches_of, input_tensors
from workbench import ROOT

RESULT = RESULTS / "quantization.json"
WORKLOADS: dict[str, Callable[[], Workload]] = {
    "resnet20": cifar.resnet20,
    "resnet56": cifar.resnet56,
    "mobilenetv2": mobilenet.mobilenetv2,
    "lstm": references.lstm,
    "gru": references.gru,
    "transformer": references.transformer,
}
IMAGES = ("resnet20", "resnet56", "mobilenetv2")
SEED = 0
# The arm that ours is timed against as well: what a user gets who calls the runtime's quantizer without options.
DEFAULTS = "quantize_static, defaults"


@dataclass(frozen=True, kw_only=True)
class Made:
    """A quantized file, the seconds that it took, and what its maker tells."""

    onnx_bytes: bytes
    seconds: float
    details: dict


# An arm makes a quantized file of (workload, its fp32 file, a folder for what it needs on disk).
Arm = Callable[[Workload, bytes, Path], Made]


def arms(network: str) -> dict[str, Arm]:
    """The arms of `network` by label, in the order of the table."""
    ours = {f"ours: {label}": by_stage(stage) for label, stage in stages(network).items()}
    static = {DEFAULTS: by_function(usual_tools.quantize_static_defaults)}
    if network not in IMAGES:
        return ours | static | {"quantize_dynamic, defaults": by_function(usual_tools.quantize_dynamic_defaults)}
    # AIMET's AdaRound takes many minutes for the smallest of the networks.
    tools = ("nncf", "aimet", "aimet-w4", *(("aimet-adaround-w4",) if network == "resnet20" else ()))
    return (
        ours
        | static
        | {"quantize_static, U8S8 per channel": by_function(usual_tools.quantize_static_u8s8)}
        | {tool: by_tool(tool) for tool in tools}
    )


def stages(network: str) -> dict[str, Stage]:
    """What compressor is asked for, by label."""
    from compressor import stages as c

    four, three = c.Symmetric(bits=4), c.Symmetric(bits=3)
    if network not in IMAGES:
        blocks = c.Symmetric(bits=4, granularity=c.PerBlock(size=32))
        return {
            "int8": c.Quantize(),
            "int8, fastest form": c.Quantize(form=c.Fastest()),
            "4-bit weights alone": c.Quantize(form=c.WeightOnly(), weights=blocks),
            "float16 weights": c.Quantize(form=c.Float16()),
        }
    found: dict[str, Stage] = {
        "int8": c.Quantize(),
        "int8, corrected": c.Quantize(calibration=c.Auto(), bias_correction=c.BiasCorrection()),
        "int8, for VNNI alone": c.Quantize(portable=None),
        "W4A8, nearest": c.Quantize(weights=four),
        "W4A8, GPTQ": c.Quantize(weights=four, rounding=c.GPTQ()),
        "W4A8, AdaRound": c.Quantize(weights=four, rounding=c.AdaRound()),
        "W3A8, GPTQ": c.Quantize(weights=three, rounding=c.GPTQ()),
        "W3-8A8 mixed, GPTQ": c.Quantize(mixed=c.MixedPrecision(size=0.5), rounding=c.GPTQ()),
    }
    if network == "resnet20":
        found["W4A8, trained 2 epochs"] = c.QuantizationAwareTraining(weights=four, epochs=2)
    return found


def by_stage(stage: Stage) -> Arm:
    def arm(workload: Workload, fp32: bytes, folder: Path) -> Made:
        del fp32
        context = Context(seed=SEED, folder=folder)
        started = time.perf_counter()
        model = stage.apply(copy.deepcopy(workload.model), workload, context)
        return Made(onnx_bytes=model.onnx_bytes, seconds=time.perf_counter() - started, details=context.details)

    return arm


def by_function(quantize: Callable[[bytes, Workload], bytes]) -> Arm:
    def arm(workload: Workload, fp32: bytes, folder: Path) -> Made:
        del folder
        started = time.perf_counter()
        return Made(onnx_bytes=quantize(fp32, workload), seconds=time.perf_counter() - started, details={})

    return arm


def by_tool(tool: str) -> Arm:
    """A quantizer in the environment `.venv-nncf` or `.venv-aimet` of the project's folder."""
    python = ROOT / f".venv-{tool.partition('-')[0]}" / "bin" / "python"

    def arm(workload: Workload, fp32: bytes, folder: Path) -> Made:
        if not python.exists():
            raise FileNotFoundError(f"not installed: make {python.parent.parent.name}")
        folder = folder.resolve()  # the process starts elsewhere
        folder.mkdir(parents=True, exist_ok=True)
        source, data, result = folder / "float.onnx", folder / "calibration.npz", folder / "quantized.onnx"
        source.write_bytes(fp32)
        np.savez(data, **calibration_arrays(workload, fp32))
        command = [python, "-W", "ignore", "-m", "benchmarks.peers.quantizer_process", tool, source, data, result]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        facts = json.loads(done.stdout.strip().splitlines()[-1])
        return Made(onnx_bytes=result.read_bytes(), seconds=facts["seconds"], details={"version": facts["version"]})

    return arm


def calibration_arrays(workload: Workload, fp32: bytes) -> dict[str, np.ndarray]:
    """All calibration inputs by the file's input names."""
    import onnx

    names = [value.name for value in onnx.load_from_string(fp32).graph.input]
    columns = zip(*(input_tensors(inputs) for inputs, _ in batches_of(workload.calibration)), strict=True)
    return {name: torch.cat(parts).numpy() for name, parts in zip(names, columns, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--arms", nargs="+", help="only labels that hold one of these texts")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/quantization"))
    parser.add_argument("--seconds", type=float, default=4.0, help="time spent on timing one file")
    parser.add_argument("--again", action="store_true", help="make the files anew")
    arguments = parser.parse_args()
    stored = read_json(RESULT)["networks"] if RESULT.exists() else {}
    for network in arguments.networks:
        chosen = {
            label: arm
            for label, arm in arms(network).items()
            if not arguments.arms or any(text in label for text in arguments.arms)
        }
        folder = arguments.out / network
        if arguments.again:
            for label in chosen:
                shutil.rmtree(folder / slug(label), ignore_errors=True)
        stored[network] = run(WORKLOADS[network](), chosen, folder, seconds=arguments.seconds)
        ordered = {name: stored[name] for name in WORKLOADS if name in stored}
        write_json(RESULT, {"benchmark": "quantization", "networks": ordered})
        print_table(network, stored[network])
    print(f"stored in {RESULT}")


def run(workload: Workload, chosen: dict[str, Arm], folder: Path, *, seconds: float) -> dict:
    """Every arm's file made first, then all of them judged and timed in one go."""
    where = environment(Target())
    fp32 = usual_tools.export(copy.deepcopy(workload.model), workload)
    made: dict[str, Made | str] = {}
    for label, arm in tqdm(chosen.items(), desc=f"{workload.name}: quantize", leave=False):
        made[label] = remembered(arm, workload, fp32, folder / slug(label))
    float_rows = rows_of(fp32, workload)
    rows = [{"arm": "fp32", "size_bytes": len(fp32), **scores(float_rows, float_rows, workload)}]
    defaults = made.get(DEFAULTS)
    for label, made_by in tqdm(made.items(), desc=f"{workload.name}: measure", leave=False):
        if isinstance(made_by, str):
            rows.append({"arm": label, "failed": made_by})
            continue
        data = made_by.onnx_bytes
        row = {"arm": label, "size_bytes": len(data), "seconds": made_by.seconds, "details": made_by.details}
        row |= scores(rows_of(data, workload), float_rows, workload)
        row["speedup"] = asdict(timed(data, fp32, workload, seconds))
        if label.startswith("ours") and isinstance(defaults, Made):
            row["over_defaults"] = asdict(timed(data, defaults.onnx_bytes, workload, seconds))
        row["kernels"] = dict(kernels(data))
        rows.append(row)
    return {"environment": where, "workload": workload.name, "metric": workload.metric.name, "rows": rows}


def timed(data: bytes, reference: bytes, workload: Workload, seconds: float):
    first = tuple(tensor[:1] for tensor in input_tensors(workload.example_inputs))
    return time_interleaved(data, reference, first, threads=1, seed=SEED, seconds=seconds).speedup


def rows_of(data: bytes, workload: Workload) -> dict[str, torch.Tensor]:
    """The metric's rows on the part of the data that nothing reads, and on the part that choices read."""
    parts = {"test": workload.test, "validation": workload.validation}
    return {name: score_rows(data, part, workload.metric, threads=2) for name, part in parts.items()}


def scores(rows: dict[str, torch.Tensor], reference: dict[str, torch.Tensor], workload: Workload) -> dict:
    """Score and paired drop on the unread test data; for CIFAR-10 over the full test set, too."""
    metric = workload.metric
    found = {
        "score": metric.aggregate(rows["test"]),
        "drop": asdict(paired_drop(rows["test"], reference["test"], metric, seed=SEED)),
        "validation_drop": asdict(paired_drop(rows["validation"], reference["validation"], metric, seed=SEED)),
    }
    if workload.name.startswith("cifar10"):
        full = {
            name: torch.cat([part["test"], part["validation"]]) for name, part in (("ours", rows), ("fp32", reference))
        }
        found["full_score"] = metric.aggregate(full["ours"])
        found["full_drop"] = asdict(paired_drop(full["ours"], full["fp32"], metric, seed=SEED))
    return found


def remembered(arm: Arm, workload: Workload, fp32: bytes, folder: Path) -> Made | str:
    """What `arm` made, from `folder` where it is there; why it failed otherwise."""
    path, facts = folder / "model.onnx", folder / "made.json"
    if facts.exists():
        known = read_json(facts)
        return known["failed"] if "failed" in known else Made(onnx_bytes=path.read_bytes(), **known)
    try:
        made = arm(workload, fp32, folder / "work")
    except Exception as error:  # noqa: BLE001 - a peer raises anything, and the table says so
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        failed = f"{type(error).__name__}: {lines[0]}"
        if not isinstance(error, FileNotFoundError):
            write_json(facts, {"failed": failed})
        return failed
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, made.onnx_bytes)
    write_json(facts, {"seconds": made.seconds, "details": made.details})
    return made


def print_table(network: str, result: dict) -> None:
    print(f"\n{network} ({result['workload']}, {result['metric']})")
    print(
        f"{'arm':44s} {'score':>8s} {'drop, points':>22s} {'speed-up':>20s} {'vs defaults':>11s} {'KiB':>6s} {'s':>6s}"
    )
    for row in result["rows"]:
        if "failed" in row:
            print(f"{row['arm']:44s} {row['failed']}")
            continue
        full = "full_drop" in row
        drop, score = row["full_drop" if full else "drop"], row["full_score" if full else "score"]
        text = f"{100 * drop['value']:6.2f} [{100 * drop['low']:5.2f}, {100 * drop['high']:5.2f}]"
        speed = row.get("speedup")
        speed_text = f"{speed['value']:.2f} [{speed['low']:.2f}, {speed['high']:.2f}]" if speed else ""
        over = f"{row['over_defaults']['value']:.2f}" if "over_defaults" in row else ""
        print(
            f"{row['arm']:44s} {score:8.4f} {text:>22s} {speed_text:>20s} {over:>11s} "
            f"{row['size_bytes'] / 1024:6.0f} {row.get('seconds', 0):6.1f}"
        )


if __name__ == "__main__":
    main()
