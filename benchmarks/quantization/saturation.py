"""What 8-bit products that saturate do to a network on x86 CPUs without VNNI, and what cures it.

python -m benchmarks.quantization.saturation [--networks built resnet20] [--samples 2000] [--part test]

`built` is a convolutional network for the 8x8 digits whose weights are all positive and large, on bright images: as bad
as it gets. `resnet20` is the trained network of the other benchmarks. Every file is scored as VNNI CPUs compute it and
as CPUs without do (emulated); where this machine can hide VNNI, ONNX Runtime's own kernels for AVX2 and AVX-512 run the
same samples, and the largest difference from the emulation is stored. Prints a table, stores results/saturation.json.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.data.cifar import resnet20
from benchmarks.stored import RESULTS
from compressor.files.export import export_onnx
from compressor.intervals import paired_drop
from compressor.machine import environment
from compressor.measuring.fidelity import sqnr_db
from compressor.quantization.file.compact_graph import serialize
from compressor.quantization.grids.weights import nearest_grids
from compressor.quantization.other_cpus.portability import (
    Portable,
    SafePairs,
    SevenBits,
    emulated_outputs,
    made_portable,
)
from compressor.quantization.post_training import Prepared, prepare
from compressor.runtime import feeds_of, open_session
from compressor.stage import Context
from compressor.stages.quantization import Quantize
from compressor.storage import write_json
from compressor.target import Isa, Target
from compressor.workload import Workload, batches_of
from workbench.masked_cpu import MASKS, can_mask, run_masked

RESULT = RESULTS / "saturation.json"
CONTEXT = Context(target=Target(isa=Isa.X86_VNNI), progress=False)


class Positive(nn.Module):
    """Three convolutions with weights from 0.2 to 1 of the largest, and a linear layer; (batch, 1, 8, 8) -> 10."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(*sizes, 3, padding=1) for sizes in ((1, 16), (16, 32), (32, 32)))
        self.head = nn.Linear(32 * 4, 10)
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=2)

    def forward(self, x: Tensor) -> Tensor:
        """Positive weights pass on every brightness; biases and the last layer bring contrast."""
        for index, layer in enumerate(self.layers):
            x = F.conv2d(x, self.weight(index), layer.bias, padding=1)
            x = F.max_pool2d(F.relu(x), 1 if index == 0 else 2)
        return self.head(x.flatten(1))

    def weight(self, index: int) -> Tensor:
        """The weights of a convolution, all positive."""
        raw = self.layers[index].weight
        return (0.2 + 0.8 * raw.sigmoid()) / raw[0].numel() ** 0.5

    @torch.no_grad()
    def centre_(self, images: Tensor) -> None:
        """Sets every bias so that about half of the positions stay above zero."""
        x = images
        for index, layer in enumerate(self.layers):
            sums = F.conv2d(x, self.weight(index), padding=1)
            layer.bias.copy_(-sums.mean(dim=(0, 2, 3)))
            x = F.max_pool2d(F.relu(sums + layer.bias.view(1, -1, 1, 1)), 1 if index == 0 else 2)

    def plain(self) -> nn.Sequential:
        """The same function of ordinary layers, whose weights hold what the parametrization gave."""
        layers: list[nn.Module] = []
        for index, layer in enumerate(self.layers):
            layer.weight.data = self.weight(index).detach()
            layers += [layer, nn.ReLU(), *([nn.MaxPool2d(2)] if index else [])]
        return nn.Sequential(*layers, nn.Flatten(), self.head).eval()


def built() -> Workload:
    """The digits as black strokes on white, with a freshly trained `Positive`; half of the test images decide."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = 1 - torch.from_numpy(data.images).float().unsqueeze(1) / 16
    targets = torch.from_numpy(data.target).long()
    torch.manual_seed(0)
    order = torch.randperm(len(targets))
    train, validation, test = order[:1000], order[1000:1400], order[1400:]
    model = Positive()
    model.centre_(images[train])
    epochs, rate = 120, 0.05
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * len(train) // 100)
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train))].split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), targets[batch]).backward()
            optimizer.step()
            schedule.step()
    return Workload.from_datasets(
        model.plain(),
        train=(images[train], targets[train]),
        validation=(images[validation], targets[validation]),
        test=(images[test], targets[test]),
        calibration_samples=256,
        name="built",
    )


NETWORKS: dict[str, Callable[[], Workload]] = {"built": built, "resnet20": resnet20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--samples", type=int, default=2000, help="samples of each network that are scored")
    parser.add_argument("--part", choices=("test", "validation"), default="test")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    networks = {}
    for name in arguments.networks:
        workload = NETWORKS[name]()
        networks[name] = measured(workload, getattr(workload, arguments.part), arguments.samples)
    result = {
        "environment": environment(CONTEXT.target),
        "part": arguments.part,
        "kernels_checked": can_mask(),
        "networks": networks,
    }
    print("\n".join(section(result)))
    write_json(arguments.out, result)


def measured(workload: Workload, data: Any, samples: int) -> list[dict[str, Any]]:
    """A row for every file of the network, the float one first."""
    exported = export_onnx(workload.model, workload).onnx_bytes
    prepared = prepare(exported, Quantize(), workload, CONTEXT)
    batches = list(_first(data, samples))
    targets = torch.cat([torch.as_tensor(labels) for _, labels in batches])
    reference = _outputs(exported, batches)
    reference_rows = workload.metric.per_sample(torch.from_numpy(reference), targets)
    rows = [{"file": "float", "samples": len(targets), "score": workload.metric.aggregate(reference_rows)}]
    for name, onnx_bytes in files(prepared, workload):
        exact = _outputs(onnx_bytes, batches)
        emulated, _, seen = emulated_outputs(onnx_bytes, batches)
        row: dict[str, Any] = {
            "file": name,
            "sqnr_db": sqnr_db(reference, exact),
            "sqnr_db_saturated": sqnr_db(reference, emulated.numpy()),
            "risky_pairs": sum(layer.risky_pairs for layer in seen.values()),
            "wrong_sums": max(layer.sum_share for layer in seen.values()),
        }
        for form, outputs in (("", torch.from_numpy(exact)), ("_saturated", emulated)):
            scored = workload.metric.per_sample(outputs, targets)
            drop = paired_drop(scored, reference_rows, workload.metric)
            row[f"score{form}"] = workload.metric.aggregate(scored)
            row[f"drop{form}"] = [drop.value, drop.low, drop.high]
        if can_mask():
            row["kernel_difference"] = max(_kernel_difference(onnx_bytes, batches, emulated, isa) for isa in MASKS)
        rows.append(row)
    return rows


def files(prepared: Prepared, workload: Workload) -> Iterator[tuple[str, bytes]]:
    """(what it is, the quantized file), from the one that saturates to the cures."""
    yield "8 bits", serialize(prepared.place())
    yield "ONNX Runtime, reduce_range", reduced(prepared, workload)
    narrow = dict.fromkeys(prepared.placement.static, replace(prepared.scheme, bits=7))
    yield "7 bits", serialize(prepared.place(weights=nearest_grids(prepared.graph, narrow)))
    for name, cure in (("7 bits where it saturates", SevenBits()), ("8 bits, safe pairs", SafePairs())):
        portable = Portable(cure=cure)
        yield name, serialize(made_portable(prepared, portable, workload, CONTEXT).place())


class _Reader(CalibrationDataReader):
    def __init__(self, workload: Workload, session: Any) -> None:
        self._feeds = iter([feeds_of(session, inputs) for inputs, _ in batches_of(workload.calibration)])

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, None behind the last."""
        return next(self._feeds, None)


def reduced(prepared: Prepared, workload: Workload) -> bytes:
    """What `quantize_static` makes of the same graph with uint8 activations and its reduce_range."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(prepared.graph, source)
        quantize_static(
            source,
            target,
            _Reader(workload, open_session(source)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return target.read_bytes()


def section(result: dict[str, Any]) -> list[str]:
    """The lines of the document about saturation."""
    scores = f"scores are those of the {result['part']} images"
    lines = [
        "## Saturation on x86 CPUs without VNNI (`make bench-quantization`)",
        "",
        f"AVX2 and AVX-512 without VNNI add pairs of 8-bit products in 16 bits: *saturated*. The {scores}.",
        "",
    ]
    for name, (first, *rows) in result["networks"].items():
        lines += [f"### {name}, {first['samples']} samples, float score {100 * first['score']:.2f} %", ""]
        lines += [*_table(rows), ""]
    rows = [row for network in result["networks"].values() for row in network if "kernel_difference" in row]
    if rows:
        largest = max(row["kernel_difference"] for row in rows)
        lines.append(
            "The emulation was compared with ONNX Runtime's own AVX2 and AVX-512 kernels, run here with VNNI hidden: "
            f"over all files the outputs of up to four batches differ by at most {largest:g}."
        )
        lines.append("")
    return lines


def saturation_table(result: dict[str, Any]) -> str:
    """The same as one text."""
    return "\n".join(section(result))


def _table(rows: list[dict[str, Any]]) -> list[str]:
    head = ("weights", "score", "saturated", "drop saturated, points", "SQNR dB", "saturated", "wrong sums in a layer")
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for row in rows:
        drop, low, high = (100 * value for value in row["drop_saturated"])
        cells = (
            row["file"],
            f"{100 * row['score']:.2f} %",
            f"{100 * row['score_saturated']:.2f} %",
            f"{drop:.2f} ({low:.2f} to {high:.2f})",
            f"{row['sqnr_db']:.1f}",
            f"{row['sqnr_db_saturated']:.1f}",
            "none possible" if not row["risky_pairs"] else f"up to {100 * row['wrong_sums']:.3f} %",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _first(data: Any, samples: int) -> Iterator[tuple[Any, Any]]:
    count = 0
    for inputs, targets in batches_of(data):
        if count >= samples:
            return
        yield inputs, targets
        count += len(targets)


def _outputs(onnx_bytes: bytes, batches: list[tuple[Any, Any]]) -> np.ndarray:
    session = open_session(onnx_bytes)
    return np.concatenate([session.run(None, feeds_of(session, inputs))[0] for inputs, _ in batches])


def _kernel_difference(onnx_bytes: bytes, batches: list[tuple[Any, Any]], emulated: Tensor, isa: Isa) -> float:
    session = open_session(onnx_bytes)
    fed = [feeds_of(session, inputs) for inputs, _ in islice(batches, 4)]
    real = run_masked(onnx_bytes, {name: np.concatenate([one[name] for one in fed]) for name in fed[0]}, isa)[0]
    return float(np.abs(real - emulated[: len(real)].numpy()).max())


if __name__ == "__main__":
    main()
