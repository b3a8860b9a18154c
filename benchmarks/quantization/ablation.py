"""What each accuracy technique of `Quantize` earns: equalization, bias correction, rounding, smoothing.

    python -m benchmarks.quantization.ablation [--settings "resnet20 W8A8" ...] [--out DIR] [--again]

One row a technique or combination. The signal-to-noise ratio is that of the outputs on calibration data, which the
techniques have read; accuracy is given on the validation half of the images, where a user would choose, and on the half
that nothing reads, as the drop paired image by image. What is done is not done again; `--again` forgets it.

`resnet20-unequal` is ResNet-20 with its channels rescaled at random, up to 16 times, without changing its function:
what equalization is for.
"""

import argparse
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.arms import described, slug
from benchmarks.data import cifar, mobilenet, references
from benchmarks.documents.cells import escaped
from benchmarks.stored import RESULTS
from compressor import Target
from compressor.files.export import export_onnx
from compressor.intervals import paired_drop
from compressor.machine import environment
from compressor.measuring.measure import score_rows
from compressor.quantization.accuracy.adaptive_rounding import AdaRound
from compressor.quantization.accuracy.bias_correction import BiasCorrection
from compressor.quantization.accuracy.channel_scaling import read_weights, rescale_, with_weights
from compressor.quantization.accuracy.channel_tracing import scaling_groups
from compressor.quantization.accuracy.equalization import CrossLayerEqualization
from compressor.quantization.accuracy.gptq import GPTQ
from compressor.quantization.accuracy.smoothing import SmoothQuant
from compressor.quantization.grids.schemes import PerTensor, Symmetric
from compressor.quantization.placement.forms import Static
from compressor.quantization.placement.prepare_graph import clean_graph
from compressor.runtime import OnnxModule
from compressor.stage import Context
from compressor.stages import Quantize
from compressor.storage import read_json, write_json
from compressor.workload import Workload

RESULT = RESULTS / "quantization-ablation.json"
SEED = 0
# Factors between 1/4 and 4, so that neighbouring channels lie up to 16 times apart.
_OCTAVES = 2.0

EQUALIZED = {"equalization": CrossLayerEqualization()}
ANALYTIC = {"bias_correction": BiasCorrection(method="analytic")}
EMPIRICAL = {"bias_correction": BiasCorrection(method="empirical")}
PLAIN: dict[str, dict] = {"plain": {}}
CORRECTED = {"analytic bias correction": ANALYTIC, "empirical bias correction": EMPIRICAL}
EQUALIZING = {"equalization": EQUALIZED, "equalization, analytic bias correction": EQUALIZED | ANALYTIC}
LEARNED = {
    "GPTQ": {"rounding": GPTQ()},
    "GPTQ, analytic bias correction": {"rounding": GPTQ()} | ANALYTIC,
    "GPTQ, biases beside": {"rounding": GPTQ()} | EMPIRICAL,
    "AdaRound": {"rounding": AdaRound()},
    "AdaRound, analytic bias correction": {"rounding": AdaRound()} | ANALYTIC,
}
SMOOTHING = {
    "SmoothQuant": {"smoothing": SmoothQuant()},
    "SmoothQuant, inserted": {"smoothing": SmoothQuant(insert=True)},
    "SmoothQuant, inserted, alpha 0.7": {"smoothing": SmoothQuant(insert=True, alpha=0.7)},
}


def unequal() -> Workload:
    """ResNet-20 with every channel between two layers alone rescaled by a random factor; the function is the same."""
    workload = cifar.resnet20()
    graph = clean_graph(export_onnx(workload.model, workload).onnx_bytes)
    weights, generator = read_weights(graph), np.random.default_rng(SEED)
    for group in scaling_groups(graph):
        if len(group.sources) == 1:
            rescale_(weights, group, 2.0 ** generator.uniform(-_OCTAVES, _OCTAVES, group.channels))
    model = OnnxModule(with_weights(graph, weights).SerializeToString())
    return replace(workload, model=model, name="cifar10-resnet20-unequal")


PER_TENSOR = {"weights": Symmetric(granularity=PerTensor())}
FOUR_BITS = {"weights": Symmetric(bits=4)}
# Setting -> (workload, what all rows share, the rows in the order of the table).
SETTINGS: dict[str, tuple[Callable[[], Workload], dict, dict[str, dict]]] = {
    "resnet20 W8A8": (cifar.resnet20, {}, PLAIN | EQUALIZING | CORRECTED),
    "resnet20 W8A8 per tensor": (cifar.resnet20, PER_TENSOR, PLAIN | EQUALIZING | CORRECTED),
    "resnet20-unequal W8A8 per tensor": (unequal, PER_TENSOR, PLAIN | EQUALIZING | CORRECTED),
    "resnet20 W4A8": (cifar.resnet20, FOUR_BITS, PLAIN | EQUALIZING | CORRECTED | LEARNED),
    "mobilenetv2 W8A8": (mobilenet.mobilenetv2, {}, PLAIN | EQUALIZING | CORRECTED),
    "mobilenetv2 W8A8 per tensor": (mobilenet.mobilenetv2, PER_TENSOR, PLAIN | EQUALIZING | CORRECTED),
    "mobilenetv2 W4A8": (mobilenet.mobilenetv2, FOUR_BITS, PLAIN | EQUALIZING | CORRECTED | LEARNED),
    "transformer dynamic": (references.transformer, {}, PLAIN | SMOOTHING | CORRECTED),
    "transformer static": (references.transformer, {"form": Static()}, PLAIN | SMOOTHING | CORRECTED),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--out", type=Path, default=Path("runs/bench/quantization-ablation"))
    parser.add_argument(
        "--references", type=Path, default=references.REFERENCES, help="where trained networks are kept"
    )
    parser.add_argument("--again", action="store_true", help="quantize again, even what is there")
    arguments = parser.parse_args()
    references.REFERENCES = arguments.references
    stored = read_json(RESULT)["settings"] if RESULT.exists() else {}
    for setting in arguments.settings:
        folder = arguments.out / slug(setting)
        if arguments.again:
            shutil.rmtree(folder, ignore_errors=True)
        build, shared, rows = SETTINGS[setting]
        if build is mobilenet.mobilenetv2:
            build = partial(build, arguments.references)
        stored[setting] = run(setting, build(), shared, rows, folder)
        ordered = {name: stored[name] for name in SETTINGS if name in stored}
        write_json(RESULT, {"benchmark": "quantization-ablation", "settings": ordered})
        print("\n".join(table(setting, stored[setting])))
    print(f"stored in {RESULT}")


def run(setting: str, workload: Workload, shared: dict, rows: dict[str, dict], folder: Path) -> dict:
    """The entry of `setting`: the float file's scores, and every row's."""
    target = Target()
    exported = export_onnx(workload.model.eval(), workload).onnx_bytes
    reference = {
        part: score_rows(exported, getattr(workload, part), workload.metric) for part in ("validation", "test")
    }
    done = {}
    for label, fields in tqdm(rows.items(), desc=setting, unit="row"):
        path = folder / f"{slug(label)}.json"
        if not path.exists():
            stage = Quantize(**{"bias_correction": None, **shared, **fields})
            write_json(path, measured(workload, exported, stage, reference, target))
        done[label] = read_json(path)
    return {
        "environment": environment(target),
        "metric": workload.metric.name,
        "float": {part: float(found.double().mean()) for part, found in reference.items()},
        "rows": done,
    }


def measured(workload: Workload, exported: bytes, stage: Quantize, reference: dict, target: Target) -> dict:
    """One row: seconds, signal to noise, and on both halves the score and the paired drop; or why there is no file."""
    context = Context(seed=SEED, target=target, progress=False)
    started = time.perf_counter()
    try:
        quantized = stage.apply(OnnxModule(exported), workload, context).onnx_bytes
    except Exception as error:  # noqa: BLE001 - a technique that refuses a network is a row of the table
        return {"stage": repr(stage), "failed": described(error)}
    row = {"stage": repr(stage), "seconds": time.perf_counter() - started, "sqnr_db": context.details["sqnr_db"]}
    for part, expected in reference.items():
        found = score_rows(quantized, getattr(workload, part), workload.metric)
        row[part] = {
            "score": workload.metric.aggregate(found),
            "drop": asdict(paired_drop(found, expected, workload.metric, seed=SEED)),
        }
    told = ("equalization", "smoothing", "bias_correction", "rounding")
    row["details"] = {name: context.details[name] for name in told if name in context.details}
    return row


def section(result: dict) -> list[str]:
    """The tables of all settings as lines of Markdown."""
    parts = [
        "## What each technique earns (`make bench-quantization`)",
        "",
        (
            "Signal to noise of the outputs on calibration data, in dB; drops in points, paired sample by sample with "
            "their 95 % intervals, on the validation half and on the half that nothing reads. W8 and W4 are the bits "
            "of the weights, per channel unless said, A8 those of the activations. *unequal* is the same function with "
            "channels rescaled at random by up to 16 times."
        ),
        "",
    ]
    for setting, entry in result["settings"].items():
        parts += [*table(setting, entry), ""]
    return parts[:-1]


def table(setting: str, entry: dict) -> list[str]:
    """One setting's table as lines of Markdown."""
    scores = {part: f"{100 * value:.2f}" for part, value in entry["float"].items()}
    lines = [
        f"### {setting}",
        "",
        f"Float {entry['metric']}: {scores['validation']} on validation, {scores['test']} on the unread half.",
        "",
        "| technique | dB | drop, validation | drop, unread half | s |",
        "|---|---|---|---|---|",
    ]
    for label, row in entry["rows"].items():
        if "failed" in row:
            lines.append(f"| {label} | {escaped(row['failed'])} |  |  |  |")
            continue
        drops = [_points(row[part]["drop"]) for part in ("validation", "test")]
        lines.append(f"| {label} | {row['sqnr_db']:.1f} | {' | '.join(drops)} | {row['seconds']:.1f} |")
    return lines


def _points(drop: dict) -> str:
    return f"{100 * drop['value']:.2f} [{100 * drop['low']:.2f}, {100 * drop['high']:.2f}]"


if __name__ == "__main__":
    main()
