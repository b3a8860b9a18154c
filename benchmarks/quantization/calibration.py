"""Time and memory of calibration on ResNet-56: every method of ours against ONNX Runtime's calibrators.

Every measurement has a process of its own, on the same cores, with the same images in batches of 32. Memory is the
peak of the resident set over what the process held before calibration began. ONNX Runtime's calibrators observe every
float tensor; ours those that the integer graph needs, and, in a row of its own, the same as theirs.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

from benchmarks.stored import RESULTS
from workbench import ROOT

RESULT = RESULTS / "calibration.json"
IMAGES = (64, 256, 1024, 4096)
BATCH = 32
OURS = ("MinMax", "MovingAverage", "Percentile", "Entropy", "MSE", "Auto", "Percentile of every tensor")
THEIRS = ("MinMax", "Percentile", "Entropy")
# What ONNX Runtime's histogram calibrators keep of an image of ResNet-56, with room for its copies while merging.
_MIB_PER_IMAGE = 7
# The share of free memory that they may take.
_MEMORY_SHARE = 0.6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES)
    parser.add_argument("--methods", nargs="+", default=[*OURS, *(f"onnxruntime {name}" for name in THEIRS)])
    parser.add_argument("--threads", type=int, default=1, help="cores that every process may use")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--worker", nargs=3, metavar=("METHOD", "IMAGES", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        method, images, folder = options.worker
        print(json.dumps(measure(method, int(images), Path(folder), options.threads)))
        return
    from compressor.machine import environment
    from compressor.storage import write_json
    from compressor.target import Target

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), max(options.images))
        for images in options.images:
            for method in options.methods:
                rows.append(row := in_a_process(method, images, folder, options.threads))
                print(row, flush=True)
    result = {
        "network": "ResNet-56",
        "batch": BATCH,
        "rows": rows,
        "memory_growth": memory_growth(rows),
        "environment": environment(Target()),
    }
    write_json(options.out, result)
    print(f"\n{calibration_table(result)}\n\nstored in {options.out}")


def prepare(folder: Path, images: int) -> None:
    """Writes the clean graph and the images, normalised, to `folder`."""
    from benchmarks.data import cifar
    from compressor.files.export import export_onnx
    from compressor.quantization.placement.prepare_graph import clean_graph

    workload = cifar.resnet56()
    graph = clean_graph(export_onnx(workload.model, workload).onnx_bytes)
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    pixels, _ = cifar.read("train")
    np.save(folder / "images.npy", cifar.normalise(pixels[:images]).numpy())


def in_a_process(method: str, images: int, folder: str, threads: int) -> dict[str, Any]:
    """The measurement of one method, or why there is none."""
    row: dict[str, Any] = {"method": method, "images": images}
    needed, free = images * _MIB_PER_IMAGE, _status("MemAvailable", "/proc/meminfo")
    if method in {"onnxruntime Percentile", "onnxruntime Entropy"} and needed > _MEMORY_SHARE * free:
        return {**row, "skipped": f"it would keep {needed / 1024:.0f} GiB of activations"}
    command = [sys.executable, "-m", __spec__.name, "--threads", str(threads), "--worker", method, str(images), folder]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    if done.returncode < 0:
        return {**row, "skipped": f"the system ended it with signal {-done.returncode}"}
    if done.returncode:
        raise RuntimeError(f"{method} on {images} images failed:\n{done.stderr}")
    return {**row, **json.loads(done.stdout.splitlines()[-1])}


def measure(method: str, images: int, folder: Path, threads: int) -> dict[str, Any]:
    """What one calibration takes in this process: seconds on the clock and of processor time, and MiB of growth."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    import torch

    torch.set_num_threads(threads)
    # A copy of those that are needed, held before the measurement begins.
    data = np.load(folder / "images.npy", mmap_mode="r")[:images].copy()
    run = _theirs if method.startswith("onnxruntime ") else _ours
    started_mib = 0.0

    def begin() -> tuple[float, float]:
        nonlocal started_mib
        # Sets the peak of the resident set back to what it is now.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        started_mib = _status("VmRSS")
        return perf_counter(), process_time()

    with contextlib.redirect_stdout(io.StringIO()):
        started, tensors = run(method, data, folder / "model.onnx", begin)
    seconds, cpu_seconds = perf_counter() - started[0], process_time() - started[1]
    growth = _status("VmHWM") - started_mib
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "images_per_second": round(images / seconds, 1),
        "tensors": tensors,
        "growth_mib": round(growth, 1),
    }


def _ours(method: str, data: Any, path: Path, begin: Any) -> tuple[tuple[float, float], int]:
    import onnx
    import torch

    from compressor.batches import Batches
    from compressor.quantization.grids.schemes import Asymmetric
    from compressor.quantization.placement.forms import ByFamily
    from compressor.quantization.placement.policy import followers, placement_of
    from compressor.quantization.placement.static import tensors_to_observe
    from compressor.quantization.ranges import methods as range_methods
    from compressor.quantization.ranges.calibration import calibrate

    graph = onnx.load(path)
    static = set(placement_of(graph, ByFamily(), ()).static)
    tensors, _ = tensors_to_observe(graph, static.union(followers(graph, static)))
    if method.endswith("of every tensor"):
        constants = {tensor.name for tensor in graph.graph.initializer}
        floats = {v.name for v in [*graph.graph.value_info, *graph.graph.input, *graph.graph.output]} - constants
        names = [*(value.name for value in graph.graph.input), *(n for node in graph.graph.node for n in node.output)]
        tensors = [name for name in names if name in floats]
    kind = getattr(range_methods, method.partition(" ")[0])()
    batches = Batches((torch.from_numpy(data), torch.zeros(len(data))), batch_size=BATCH)
    started = begin()
    calibrate(graph, tensors, batches, kind, Asymmetric(), signed=False)
    return started, len(tensors)


def _theirs(method: str, data: Any, path: Path, begin: Any) -> tuple[tuple[float, float], int]:
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    class Reader:
        def __init__(self) -> None:
            self._starts = iter(range(0, len(data), BATCH))

        def get_next(self) -> dict[str, Any] | None:
            start = next(self._starts, None)
            return None if start is None else {"input": np.ascontiguousarray(data[start : start + BATCH])}

    kind = CalibrationMethod[method.partition(" ")[2]]
    started = begin()
    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            path, augmented_model_path=str(Path(folder) / "augmented.onnx"), calibrate_method=kind
        )
        calibrator.collect_data(Reader())
        found = calibrator.compute_data()
    return started, len(found.data)


def memory_growth(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """{method: images of the smallest and of the largest run that it finished, and MiB that the second took more}."""
    found = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        done = sorted(
            (row["images"], row["growth_mib"]) for row in rows if row["method"] == method and "seconds" in row
        )
        if len(done) > 1:
            (fewest, before), (most, after) = done[0], done[-1]
            found[method] = {"from_images": fewest, "to_images": most, "mib": round(after - before, 1)}
    return found


def _status(key: str, path: str = "/proc/self/status") -> float:
    for line in Path(path).read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(f"{path} has no {key}")


def section(result: dict) -> list[str]:
    """The lines of the results page."""
    where = result["environment"]
    return [
        "## Calibration (`make bench-quantization`)",
        "",
        (
            f"{result['network']}, batches of {result['batch']}, {where.get('cpu')}: images a second and growth of "
            "resident memory, every cell in a process of its own. ONNX Runtime's calibrators observe more tensors than "
            "ours need; like for like is the row of every tensor. *More memory* is what the largest run took more than "
            "the smallest."
        ),
        "",
        *calibration_table(result).splitlines(),
    ]


def calibration_table(result: dict[str, Any]) -> str:
    """A Markdown table, methods by images: images a second and MiB, memory gained by more images, how much faster.

    A run that was left out says why.
    """
    rows = {(row["method"], row["images"]): row for row in result["rows"]}
    counts = sorted({row["images"] for row in result["rows"]})
    methods = list(dict.fromkeys(row["method"] for row in result["rows"]))
    growth = memory_growth(result["rows"])
    heads = [f"{count} images" for count in counts]
    lines = [
        f"| method | tensors | {' | '.join(heads)} | more memory | of ORT's percentile |",
        f"|---|---|{'---|' * (len(counts) + 2)}",
    ]
    for method in methods:
        entries = [rows.get((method, count), {}) for count in counts]
        tensors = next((str(entry["tensors"]) for entry in entries if "tensors" in entry), "")
        ratios = [
            entry["images_per_second"] / other["images_per_second"]
            for entry, count in zip(entries, counts, strict=True)
            if "seconds" in entry and "seconds" in (other := rows.get(("onnxruntime Percentile", count), {}))
        ]
        # The largest run that both finished: smaller ones are mostly the opening of sessions.
        ratio = f"{ratios[-1]:.1f}x" if ratios else ""
        more = growth.get(method)
        gained = f"{round(more['mib']):+d} MiB from {more['from_images']} to {more['to_images']}" if more else ""
        lines.append(f"| {method} | {tensors} | {' | '.join(map(_cell, entries))} | {gained} | {ratio} |")
    return "\n".join(lines)


def _cell(entry: dict[str, Any]) -> str:
    if "seconds" in entry:
        return f"{entry['images_per_second']:.0f} /s, {entry['growth_mib']:.0f} MiB"
    return f"left out: {entry['skipped']}" if "skipped" in entry else ""


if __name__ == "__main__":
    main()
