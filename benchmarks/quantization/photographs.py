"""A network pretrained on ImageNet in 8 and 4 bits, beside the files of other quantizers: what rounding costs there.

    python -m benchmarks.quantization.photographs [--arms TEXT ...] [--out DIR] [--again]

EfficientNet-Lite1 with 250 photographs that calibrate and 250 others that are scored and that nothing reads. One point
is two and a half of these, so every file is also held against the float file: signal to noise of the logits, and how
often both decide alike. Every file is timed interleaved with the float file, one thread, batch 1. NNCF and AIMET run in
environments of their own (`make bench-imagenet` sets them up). What is done is not done again; `--again` forgets it.
"""

import argparse
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from tqdm import tqdm

from benchmarks.arms import slug
from benchmarks.data import photographs
from benchmarks.documents.cells import escaped, points, spread
from benchmarks.peers import usual_tools
from benchmarks.quantization.quantizers import Arm, Made, by_function, by_tool, remembered, timed
from benchmarks.stored import RESULTS
from compressor import Target
from compressor import stages as c
from compressor.files.export import export_onnx
from compressor.intervals import paired_drop
from compressor.machine import environment
from compressor.measuring.fidelity import sqnr_db
from compressor.quantization.accuracy.layer_rows import input_columns, to_rows
from compressor.quantization.accuracy.linear_layers import linear_layers
from compressor.quantization.file.compact_graph import kernels
from compressor.quantization.grids.weights import nearest_grids
from compressor.quantization.placement.prepare_graph import clean_graph
from compressor.quantization.torch_graph.graph import TorchGraph
from compressor.runtime import OnnxModule, open_session
from compressor.stage import Context, Stage
from compressor.storage import read_json, write_atomic, write_json
from compressor.workload import Workload

RESULT = RESULTS / "imagenet.json"
SEED = 0
# ONNX Runtime's percentile calibration holds every activation of all its samples: 64 take 5.2 GB.
_PERCENTILE_SAMPLES = 24
_FOUR = c.Symmetric(bits=4)
OURS: dict[str, Stage] = {
    "int8": c.Quantize(),
    "int8, no bias corrected": c.Quantize(bias_correction=None),
    "int8, GPTQ": c.Quantize(rounding=c.GPTQ()),
    "W4A8, nearest": c.Quantize(weights=_FOUR),
    "W4A8, GPTQ": c.Quantize(weights=_FOUR, rounding=c.GPTQ()),
    "W4A8, GPTQ, 8 bits where they count": c.Quantize(
        weights=_FOUR, rounding=c.GPTQ(), mixed=c.MixedPrecision(bits=(4, 8), size=0.53)
    ),
    "W3-8A8 in the bytes of 4 bits, GPTQ": c.Quantize(
        weights=_FOUR, rounding=c.GPTQ(), mixed=c.MixedPrecision(bits=(3, 4, 5, 6, 8), size=0.5)
    ),
    "W4A8, GPTQ, no bias corrected": c.Quantize(weights=_FOUR, rounding=c.GPTQ(), bias_correction=None),
}
TOOLS = ("nncf", "aimet", "aimet-w4")


def arms() -> dict[str, Arm]:
    """What makes a file, by label, in the order of the table."""
    return (
        {f"ours: {label}": partial(_ours, stage) for label, stage in OURS.items()}
        | {
            "quantize_static, defaults (S8S8)": by_function(usual_tools.quantize_static_defaults),
            "quantize_static, U8S8 per channel": by_function(usual_tools.quantize_static_u8s8),
            "quantize_static, U8S8 per channel, percentile": by_function(
                partial(usual_tools.quantize_static_percentile, samples=_PERCENTILE_SAMPLES)
            ),
        }
        | {tool: by_tool(tool) for tool in TOOLS}
    )


def _ours(stage: Stage, workload: Workload, fp32: bytes, folder: Path) -> Made:
    context = Context(seed=SEED, folder=folder)
    started = time.process_time()
    model = stage.apply(OnnxModule(fp32), workload, context)
    assert isinstance(model, OnnxModule)
    return Made(onnx_bytes=model.onnx_bytes, seconds=time.process_time() - started, details=context.details)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", help="only labels that hold one of these texts")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/imagenet"))
    parser.add_argument("--seconds", type=float, default=4.0, help="time spent on timing one file")
    parser.add_argument("--again", action="store_true", help="make the files anew")
    arguments = parser.parse_args()
    chosen = {
        label: arm
        for label, arm in arms().items()
        if not arguments.arms or any(text in label for text in arguments.arms)
    }
    if arguments.again:
        for label in chosen:
            shutil.rmtree(arguments.out / slug(label), ignore_errors=True)
    workload = photographs.efficientnet_lite1()
    fp32 = _float_file(workload, arguments.out)
    float_logits, targets = logits(fp32, workload), labels(workload)
    stored = read_json(RESULT) if RESULT.exists() else {}
    known = {row["arm"]: row for row in stored.get("rows", [])}
    for label, arm in tqdm(chosen.items(), desc=workload.name):
        made = remembered(arm, workload, fp32, arguments.out / slug(label))
        row: dict[str, Any] = (
            {"failed": made}
            if isinstance(made, str)
            else {
                "size_bytes": len(made.onnx_bytes),
                "seconds": made.seconds,
                "details": made.details,
                "kernels": dict(kernels(made.onnx_bytes)),
            }
        )
        if isinstance(made, Made):
            row |= judged(logits(made.onnx_bytes, workload), float_logits, targets, workload)
            row["speedup"] = asdict(timed(made.onnx_bytes, fp32, workload, arguments.seconds))
        known[label] = {"arm": label, **row}
        result = {
            "benchmark": "imagenet",
            "environment": environment(Target()),
            "workload": workload.name,
            "metric": workload.metric.name,
            "samples": len(targets),
            "float": {"score": float((float_logits.argmax(1) == targets).mean()), "size_bytes": len(fp32)},
            "layers": stored.get("layers") or layer_noise(fp32, workload),
            "rows": [known[name] for name in arms() if name in known],
        }
        stored = result
        write_json(RESULT, result)
    print("\n".join(section(read_json(RESULT))))


def _float_file(workload: Workload, folder: Path) -> bytes:
    path = folder / "float.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, export_onnx(workload.model, workload).onnx_bytes)
    return path.read_bytes()


def logits(data: bytes, workload: Workload) -> NDArray[np.float32]:
    """What the file says of every photograph that is scored, (photographs, classes)."""
    session = open_session(data)
    name = session.get_inputs()[0].name
    rows = [session.run(None, {name: image[None].numpy()})[0] for images, _ in workload.test for image in images]
    return np.concatenate(rows)


def labels(workload: Workload) -> NDArray[np.int64]:
    """The class of every photograph that is scored."""
    return np.concatenate([np.asarray(targets) for _, targets in workload.test])


def judged(
    found: NDArray[np.float32], reference: NDArray[np.float32], targets: NDArray[np.int64], workload: Workload
) -> dict[str, Any]:
    """Score and paired drop of the logits `found`, and what they keep of those of the float file."""
    rows, float_rows = (torch.from_numpy((each.argmax(1) == targets).astype(np.float32)) for each in (found, reference))
    return {
        "score": float(rows.mean()),
        "drop": asdict(paired_drop(rows, float_rows, workload.metric, seed=SEED)),
        "lost": int(((rows == 0) & (float_rows == 1)).sum()),
        "won": int(((rows == 1) & (float_rows == 0)).sum()),
        "agreement": float((found.argmax(1) == reference.argmax(1)).mean()),
        "sqnr_db": sqnr_db(reference, found),
    }


def layer_noise(fp32: bytes, workload: Workload) -> list[dict[str, Any]]:
    """Of every linear layer what 8-bit weights do to its own output, on a few photographs that calibrate.

    Signal to noise in decibels, and the share of the noise that is a shift of the channels' means.
    """
    graph = clean_graph(fp32)
    nodes = {node.name: node for node in graph.graph.node}
    layers = [layer for layer in linear_layers(graph) if layer.kind in {"Conv", "Gemm"}]
    grids = nearest_grids(graph, {layer.name: c.Symmetric() for layer in layers})
    weights = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in graph.graph.initializer
        if tensor.name in grids
    }
    net = TorchGraph(graph, foreign=True).requires_grad_(requires_grad=False)
    images = next(iter(workload.calibration))[0][:4]
    names = [layer.input for layer in layers]
    values = dict(zip(names, net.run(net.feeds(images), names), strict=True))
    found = []
    for layer in layers:
        weight, node = weights[layer.weight], nodes[layer.name]
        rows, errors = (to_rows(node, each) for each in (weight, grids[layer.weight].values() - weight))
        signal = noise = shift = 0.0
        for columns in input_columns(node, values[layer.input], weight.shape):
            output, error = rows @ columns, errors @ columns
            signal += float((output - output.mean(2, keepdim=True)).square().sum())
            noise += float(error.square().sum())
            shift += float(error.mean(2).square().sum()) * error.shape[2]
        kind = "depthwise" if layer.groups > 1 else "classifier" if layer.kind == "Gemm" else "pointwise"
        found.append(
            {
                "layer": layer.name,
                "kind": kind if weight.shape[-1] == 1 or layer.groups > 1 or layer.kind == "Gemm" else "first",
                "narrows": bool(layer.kind == "Conv" and weight.shape[0] < weight.shape[1]),
                "sqnr_db": 10 * float(np.log10(signal / noise)),
                "mean_share": shift / noise,
            }
        )
    return found


def section(result: dict[str, Any]) -> list[str]:
    """Conclusions, then the table of the files, then where the noise comes from, as lines of Markdown."""
    rows = {row["arm"]: row for row in result["rows"]}
    made = [row for row in result["rows"] if "failed" not in row]
    ours, plain = rows.get("ours: int8", {}), rows.get("ours: int8, no bias corrected", {})
    parts = [
        "## A network pretrained on ImageNet (`make bench-imagenet`)",
        "",
    ]
    if "drop" in ours and "drop" in plain:
        parts += [
            f"**`Quantize()` loses {points(ours['drop'])} points and agrees with float on "
            f"{_percent(ours['agreement'])} of the photographs at {ours['sqnr_db']:.1f} dB; without its bias "
            f"correction it would be {points(plain['drop'])} points, {_percent(plain['agreement'])} and "
            f"{plain['sqnr_db']:.1f} dB." + _four_bits(rows) + "**"
        ]
    if parts[-1]:
        parts += [""]
    parts += [
        (
            f"{result['workload']}, float {100 * result['float']['score']:.1f} % of {result['samples']} photographs "
            f"that nothing else reads; as many others calibrate. {result['environment'].get('cpu')}, one thread, batch "
            "1. One photograph is "
            f"{100 / result['samples']:.1f} points: read the decibels of the logits and the agreement first. "
            "*Lost, won* counts the photographs that the file alone gets wrong, and right. Speed against float, timed "
            "in turns; other programs may have run beside it, so intervals are wide. Seconds: of the CPU for ours, "
            f"by the clock for the others. Ranges by percentile come from {_PERCENTILE_SAMPLES} photographs."
        ),
        "",
        "| file | top-1 | drop | lost, won | agreement | dB | speed | smaller | s |",
        "|---|--:|---|--:|--:|--:|---|--:|--:|",
        *(_line(row, result["float"]["size_bytes"]) for row in result["rows"]),
        "",
        *_layers(result["layers"]),
    ]
    return parts if made else parts[:2]


def _four_bits(rows: dict[str, dict[str, Any]]) -> str:
    four, plain = rows.get("ours: W4A8, GPTQ", {}), rows.get("ours: W4A8, GPTQ, no bias corrected", {})
    if "drop" not in four:
        return ""
    told = f" With weights of 4 bits by GPTQ it loses {points(four['drop'])} points at {four['sqnr_db']:.1f} dB"
    if "drop" in plain:
        told += f"; without biases beside it, {points(plain['drop'])} at {plain['sqnr_db']:.1f} dB"
    return f"{told}."


def _line(row: dict[str, Any], fp32_bytes: int) -> str:
    if "failed" in row:
        return f"| {row['arm']} | failed: {escaped(row['failed'])} |  |  |  |  |  |  |  |"
    cells = [
        row["arm"],
        f"{100 * row['score']:.1f}",
        points(row["drop"]),
        f"{row['lost']}, {row['won']}",
        _percent(row["agreement"]),
        f"{row['sqnr_db']:.1f}",
        spread(row["speedup"]),
        f"{fp32_bytes / row['size_bytes']:.2f}x",
        f"{row['seconds']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _layers(layers: list[dict[str, Any]]) -> list[str]:
    """Where the noise of 8-bit weights comes from, by kind of layer."""
    kinds: dict[str, Callable[[dict[str, Any]], bool]] = {
        "first": lambda layer: layer["kind"] == "first",
        "pointwise, more channels": lambda layer: layer["kind"] == "pointwise" and not layer["narrows"],
        "depthwise": lambda layer: layer["kind"] == "depthwise",
        "pointwise, fewer channels": lambda layer: layer["kind"] == "pointwise" and layer["narrows"],
        "classifier": lambda layer: layer["kind"] == "classifier",
    }
    lines = [
        (
            "What weights of 8 bits do to each layer's own output (means over layers; signal around the mean). Layers "
            "behind a ReLU6, whose inputs are not negative, turn an error of the weights into a shift of the mean, "
            "which a bias takes out at no cost; most of the noise of depthwise layers, and of those behind them, is "
            "such a shift."
        ),
        "",
        "| layers | how many | dB | noise that is a shift of the mean |",
        "|---|--:|--:|--:|",
    ]
    for label, belongs in kinds.items():
        those = [layer for layer in layers if belongs(layer)]
        if those:
            db, share = (float(np.mean([layer[name] for layer in those])) for name in ("sqnr_db", "mean_share"))
            lines.append(f"| {label} | {len(those)} | {db:.1f} | {_percent(share)} |")
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


if __name__ == "__main__":
    main()
