"""How well the latency table predicts the time of whole models, in fp32 and in int8.

python -m benchmarks.structure.latency_table [--only PART] [--seconds 2.0] [--threads 1] [--folder CACHE]

Weights are random: times do not depend on them. Every file is predicted from a table measured just now, or kept in
CACHE, and timed in turns with the dense fp32 file of its family. `relative` predictions scale what was measured for the
dense file of the same precision, as a choice of structure does. Prints the table, stores results/latency_table.json.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.stored import RESULTS
from compressor.files.export import export_onnx
from compressor.latency.prediction import operators_of_graph, predict_ms
from compressor.latency.table import LatencyTable
from compressor.machine import environment
from compressor.measuring.timing import time_interleaved
from compressor.runtime import feeds_of, open_session
from compressor.stage import Context
from compressor.stages import Quantize
from compressor.storage import write_json
from compressor.target import Target
from compressor.workload import Workload
from compressor.workloads.residual import ResNet

RESULT = RESULTS / "latency_table.json"


class Recurrent(nn.Module):
    """Two LSTM layers on (batch, 50, 40) features, and a linear layer on the last step."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(40, hidden, 2, batch_first=True)
        self.head = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, steps, 40) -> (batch, 10)."""
        return self.head(self.rnn(x)[0][:, -1])


class Transformer(nn.Module):
    """Encoder layers of `width` with 4 heads on (batch, 48) tokens."""

    def __init__(self, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, width)
        layer = nn.TransformerEncoderLayer(width, 4, hidden, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, length) -> (batch, 10)."""
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


class InvertedResiduals(nn.Module):
    """A MobileNetV2 in small (Sandler et al. 2018, arXiv:1801.04381): expansion, depthwise convolution, projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1), nn.ReLU6()]
        for inputs, outputs, stride in ((1, 1, 1), (1, 2, 2), (2, 2, 1), (2, 4, 2), (4, 4, 1)):
            hidden = 6 * width * inputs
            layers += [nn.Conv2d(width * inputs, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU6()]
            layers += [nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden), nn.BatchNorm2d(hidden), nn.ReLU6()]
            layers += [nn.Conv2d(hidden, width * outputs, 1), nn.BatchNorm2d(width * outputs)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, 32, 32) -> (batch, 10)."""
        return self.head(self.features(x).mean((2, 3)))


def perceptron(width: int) -> nn.Module:
    """784 -> width -> width -> 10."""
    layers = [nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


def families() -> dict[str, tuple[Tensor, dict[str, Callable[[], nn.Module]]]]:
    """Samples and models of every family, the dense one first."""
    images = torch.randn(32, 3, 32, 32)
    tokens = torch.randint(0, 100, (32, 48))
    return {
        "ResNet-20": (
            images,
            {
                "dense": lambda: ResNet(blocks=[3] * 3),
                "widths 8, 16, 32": lambda: ResNet(blocks=[3] * 3, widths=(8, 16, 32)),
                "widths 14, 23, 50": lambda: ResNet(blocks=[3] * 3, widths=(14, 23, 50)),
                "widths 12, 24, 48": lambda: ResNet(blocks=[3] * 3, widths=(12, 24, 48)),
                "2 blocks a stage": lambda: ResNet(blocks=[2] * 3),
            },
        ),
        "ResNet-56": (
            images,
            {
                "dense": lambda: ResNet(blocks=[9] * 3),
                "widths 16, 24, 40": lambda: ResNet(blocks=[9] * 3, widths=(16, 24, 40)),
                "4 blocks a stage": lambda: ResNet(blocks=[4] * 3),
            },
        ),
        "inverted residuals": (
            images,
            {"dense": lambda: InvertedResiduals(24), "width 16": lambda: InvertedResiduals(16)},
        ),
        "MLP": (
            torch.randn(32, 1, 28, 28),
            {
                "dense": lambda: perceptron(1024),
                "width 500": lambda: perceptron(500),
                "width 256": lambda: perceptron(256),
            },
        ),
        "LSTM": (
            torch.randn(32, 50, 40),
            {"dense": lambda: Recurrent(128), "96 units": lambda: Recurrent(96), "50 units": lambda: Recurrent(50)},
        ),
        "transformer": (
            tokens,
            {
                "dense": lambda: Transformer(128, 512, 3),
                "256 neurons": lambda: Transformer(128, 256, 3),
                "width 64, 2 layers": lambda: Transformer(64, 256, 2),
            },
        ),
    }


def files_of(name: str, model: nn.Module, samples: Tensor) -> dict[str, bytes]:
    """The model's fp32 and int8 files."""
    data = (samples, torch.arange(len(samples)) % 10)
    workload = Workload.from_datasets(
        model.eval(), train=data, test=data, batch_size=16, calibration_samples=32, name=name
    )
    quantized: Any = Quantize().apply(workload.model, workload, Context(progress=False))
    return {"fp32": export_onnx(workload.model, workload).onnx_bytes, "int8": quantized.onnx_bytes}


def fastest_ms(file: bytes, inputs: Tensor, threads: int, calls: int = 300) -> float:
    """The quickest of many calls: what a busy machine still shows of an undisturbed one, as the table's entries do."""
    session = open_session(file, threads=threads)
    feeds, best = feeds_of(session, inputs), float("inf")
    for _ in range(calls):
        start = perf_counter()
        session.run(None, feeds)
        best = min(best, perf_counter() - start)
    return 1e3 * best


def compare(table: LatencyTable, seconds: float, only: str) -> Iterator[dict[str, Any]]:
    """One row for every model and precision; errors are predicted / measured - 1."""
    for family, (samples, models) in families().items():
        if only not in family:
            continue
        inputs = samples[: table.target.batch_size]
        dense: dict[str, bytes] = {}
        ratios: dict[str, float] = {}
        for name, build in models.items():
            torch.manual_seed(0)
            files = files_of(f"{family} {name}", build(), samples)
            dense = dense or files
            for form, file in files.items():
                known, start = len(table), perf_counter()
                predicted = predict_ms(file, inputs, table)
                spent = perf_counter() - start
                timing = time_interleaved(file, dense["fp32"], inputs, seconds=seconds, threads=table.target.threads)
                measured, fastest = timing.candidate_ms, fastest_ms(file, inputs, table.target.threads)
                ratios.setdefault(form, measured.value / predicted)
                row = {
                    "family": family,
                    "model": name,
                    "form": form,
                    "operators": len(operators_of_graph(file, inputs, table.target.batch_size)),
                    "predicted_ms": predicted,
                    "measured_ms": [measured.value, measured.low, measured.high],
                    "fastest_ms": fastest,
                    "error": predicted / measured.value - 1,
                    "error_to_fastest": predicted / fastest - 1,
                    "relative_error": predicted * ratios[form] / measured.value - 1 if name != "dense" else None,
                    "entries_measured": len(table) - known,
                    "seconds": spent,
                }
                if form == "int8":
                    before = predict_ms(files["fp32"], inputs, table, precision="int8")
                    row["error_before_quantizing"] = before / measured.value - 1
                yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="families whose name holds this")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for measuring one file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where tables are kept; by default nothing is kept")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    target = Target(threads=options.threads)
    where = environment(target)
    with tempfile.TemporaryDirectory() as temporary:
        table = LatencyTable(target, folder=options.folder or Path(temporary))
        columns = ("family", "model", "form", "predicted ms", "measured ms", "error", "to the fastest call")
        print(f"| {' | '.join(columns)} | relative to dense | before quantizing |")
        print("|---|---|---|---:|---:|---:|---:|---:|---:|")
        rows = []
        for row in compare(table, options.seconds, options.only):
            rows.append(row)
            errors = (row["error"], row["error_to_fastest"], row["relative_error"], row.get("error_before_quantizing"))
            cells = " | ".join("" if error is None else f"{error:+.1%}" for error in errors)
            times = f"{row['predicted_ms']:.4f} | {row['measured_ms'][0]:.4f}"
            print(f"| {row['family']} | {row['model']} | {row['form']} | {times} | {cells} |", flush=True)
    summary = {}
    for form in ("fp32", "int8"):
        for key in ("error", "error_to_fastest", "relative_error", "error_before_quantizing"):
            errors = [abs(row[key]) for row in rows if row["form"] == form and row.get(key) is not None]
            if errors:
                summary[f"{form}_{key}"] = {"median": statistics.median(errors), "largest": max(errors)}
                print(f"{form} {key}: median {statistics.median(errors):.1%}, largest {max(errors):.1%}")
    entries, spent = sum(row["entries_measured"] for row in rows), sum(row["seconds"] for row in rows)
    print(f"{entries} entries measured in {spent:.1f} s")
    result = {"summary": summary, "rows": rows, "entries": entries, "seconds": spent, "environment": where}
    write_json(options.out, result)
    print(f"stored in {options.out}")


if __name__ == "__main__":
    main()
