"""What filling narrow integer convolutions up with channels of zeros gains and costs.

    python -m benchmarks.quantization.filled_widths [--seconds 1]

One layer first, a residual 3x3 convolution of 4 or 8 channels, timed as it is and filled up to 16 on every class of x86
CPU, of which the older ones are seen by hiding instructions from ONNX Runtime (`masked_cpu`). Then the zoo: the file as
this machine gets it against the one with the widths of AVX2, timed interleaved, and what the zeros take in the files.
Stores results/filled-widths.json. Takes some minutes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.documents.cells import spread
from benchmarks.stored import RESULTS
from compressor.errors import ExportError, StageError
from compressor.files.export import export_onnx
from compressor.latency.operator_graphs import runnable
from compressor.latency.operators import conv
from compressor.latency.table import time_operator
from compressor.machine import environment
from compressor.measuring.timing import time_interleaved
from compressor.quantization.file.channel_alignment import aligned
from compressor.quantization.file.compact_graph import compact_graph, serialize
from compressor.quantization.file.packing import smallest_file
from compressor.quantization.post_training import prepare
from compressor.stage import Context
from compressor.stages.quantization import Quantize
from compressor.storage import write_json
from compressor.target import Isa, Target
from compressor.workload import resize_batch
from workbench import ROOT
from workbench.masked_cpu import can_mask, masked_environment
from workbench.zoo import ARCHITECTURES
from workbench.zoo.check import randomized_, workload_of

RESULT = RESULTS / "filled-widths.json"
CLASSES = {"": "as it is (AVX-512, VNNI)", "avx_vnni": "AVX-VNNI", "avx512": "AVX-512", "avx2": "AVX2"}
WIDTHS, MAPS = (4, 8), (8, 16, 32)
REPEATS = 5
CONTEXT = Context(target=Target(isa=Isa.X86_VNNI), progress=False)
# The rule for AVX2 leaves widths up to 8 as they are.
FILLED, NARROW = Target(isa=Isa.X86_VNNI), Target(isa=Isa.X86_AVX2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing one network")
    parser.add_argument("--layers", action="store_true", help="print the layers of this process as JSON, nothing else")
    arguments = parser.parse_args()
    if arguments.layers:
        print(json.dumps(layers()))
        return
    result = {"environment": environment(CONTEXT.target), "classes": classes(), "zoo": zoo(arguments.seconds)}
    print("\n".join(section(result)))
    write_json(RESULT, result)


def layers() -> list[dict[str, Any]]:
    """The time of every layer filled up to 16 channels over the time as it is, the median of some repeats."""
    rows = []
    for width in WIDTHS:
        for size in MAPS:
            narrow, filled = (
                runnable(conv(channels, channels, (size, size), kernel=(3, 3), flags=("add",)), "int8")
                for channels in (width, 16)
            )
            ratios = [time_operator(filled, NARROW) / time_operator(narrow, NARROW) for _ in range(REPEATS)]
            rows.append({"width": width, "map": size, "time": statistics.median(ratios)})
    return rows


def classes() -> dict[str, list[dict[str, Any]]]:
    """The layers on every class of CPU that can be had here."""
    found = {}
    for mask in CLASSES if can_mask() else [""]:
        with tempfile.TemporaryDirectory() as folder:
            seen = masked_environment(mask, Path(folder)) if mask else None
            done = subprocess.run(
                [sys.executable, "-m", __spec__.name, "--layers"],
                env=seen,
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            )
        found[mask] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def zoo(seconds: float) -> dict[str, Any]:
    """Networks whose widths the rule changes, with their speed; bytes of all that have integer convolutions."""
    rows, size = [], {"plain": 0, "zeros stored": 0, "zeros added at load": 0}
    for architecture in tqdm(ARCHITECTURES, desc="zoo", unit="network"):
        torch.manual_seed(0)
        model = randomized_(architecture.build()).eval()
        workload = workload_of(architecture, model)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exported = export_onnx(model, workload).onnx_bytes
                prepared = prepare(exported, Quantize(), workload, CONTEXT)
        except (ExportError, StageError):
            continue
        if not prepared.placement.static:
            continue
        placed = aligned(prepared.place(), Isa.X86_VNNI)
        size["plain"] += len(serialize(compact_graph(prepared.place())))
        size["zeros stored"] += len(serialize(compact_graph(placed)))
        size["zeros added at load"] += len(smallest_file(serialize(placed), placed, {}, signed_activations=False))
        files = [replace(prepared, isa=target.isa).shipped() for target in (FILLED, NARROW)]
        if files[0] != files[1]:
            inputs = resize_batch(workload.example_inputs, 1)
            speedup = time_interleaved(*files, inputs, seconds=seconds).speedup
            rows.append({"name": architecture.name, "speedup": asdict(speedup)})
    return {"networks": rows, "bytes": size}


def section(result: dict[str, Any]) -> list[str]:
    """The tables as lines of Markdown."""
    zoo, size = result["zoo"], result["zoo"]["bytes"]
    values = [row["speedup"]["value"] for row in zoo["networks"]]
    stored, added = (size[name] / size["plain"] - 1 for name in ("zeros stored", "zeros added at load"))
    names = [f"{row['width']} channels, {row['map']}x{row['map']}" for row in next(iter(result["classes"].values()))]
    return [
        "## Channels of zeros for narrow convolutions (`make bench-filled-widths`)",
        "",
        (
            f"{result['environment'].get('cpu')}, one thread, batch 1. The time of a residual 3x3 convolution filled "
            "up to 16 channels over its time as it is; below 1 filling pays. Older CPUs are this one with instructions "
            "hidden."
        ),
        "",
        f"| CPU | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
        *(
            f"| {CLASSES[mask]} | {' | '.join(format(row['time'], '.2f') for row in rows)} |"
            for mask, rows in result["classes"].items()
        ),
        "",
        (
            f"Over the zoo, filling 5 to 8 channels changes {len(values)} networks: {statistics.median(values):.2f}x "
            f"the speed in the median, {min(values):.2f}x to {max(values):.2f}x. All zeros together would add "
            f"{stored:.1%} to the files' bytes; added when a file is loaded they cost {added:.1%}."
        ),
        "",
        "| network | speed-up by filling 5 to 8 channels |",
        "|---|---|",
        *(f"| {row['name']} | {spread(row['speedup'])} |" for row in zoo["networks"]),
    ]


if __name__ == "__main__":
    main()
