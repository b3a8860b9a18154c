"""The CPU time of one export, with and without torch's decomposition of every operator.

    python -m benchmarks.export_time [--rounds 5]

The network is MobileNetV3-Small (Howard et al. 2019, arXiv:1905.02244, table 2) with random weights, for images of 64
by 64, with free batch, height and width. Both ways are measured in turns in one process, by its own CPU time, after one
round that is not counted. The files must be the same to the byte, or nothing is stored.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from benchmarks.stored import RESULTS
from compressor.files import child_process, export
from compressor.files.export import export_onnx
from compressor.machine import environment
from compressor.storage import sha256, write_json
from compressor.target import Target
from compressor.workload import Workload
from workbench.same_data import same_data

RESULT = RESULTS / "export-time.json"
# Kernel, expansion, output channels, squeeze, hard-swish, stride.
BLOCKS = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)


class Gate(nn.Module):
    """Squeeze and excitation with a hard gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(8, (width // 4 + 4) // 8 * 8)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, inner, 1), nn.ReLU(), nn.Conv2d(inner, width, 1), nn.Hardsigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class Block(nn.Module):
    """An inverted residual."""

    def __init__(self, inputs: int, kernel: int, middle: int, outputs: int, *, gated: bool, hard: bool, stride: int):
        super().__init__()
        act = nn.Hardswish if hard else nn.ReLU
        layers = [*convolution(inputs, middle, act=act)] if middle != inputs else []
        layers += convolution(middle, middle, kernel, stride, groups=middle, act=act)
        layers += [Gate(middle)] if gated else []
        self.body = nn.Sequential(*layers, *convolution(middle, outputs, act=None))
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.is_residual else self.body(x)


def convolution(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, act: type[nn.Module] | None
) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), *([act(inplace=True)] if act else [])]


def mobilenet_v3_small(classes: int = 10) -> nn.Module:
    """Table 2, with fewer classes."""
    layers, inputs = convolution(3, 16, 3, 2, act=nn.Hardswish), 16
    for kernel, middle, outputs, gated, hard, stride in BLOCKS:
        layers.append(Block(inputs, kernel, middle, outputs, gated=gated, hard=hard, stride=stride))
        inputs = outputs
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(576, 1024), nn.Hardswish(inplace=True)]
    return nn.Sequential(*layers, *convolution(96, 576, act=nn.Hardswish), *head, nn.Linear(1024, classes))


def measured(model: nn.Module, workload: Workload, *, direct: bool) -> tuple[float, bytes]:
    """CPU seconds of one export and its file."""
    right = export.write
    export.write = lambda *given, **settings: right(*given, **{**settings, "direct": direct})
    start = time.process_time()
    try:
        onnx_bytes = export_onnx(model, workload).onnx_bytes
    finally:
        export.write = right
    return time.process_time() - start, onnx_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    torch.set_num_threads(1)
    child_process.can_fork = lambda: False  # the CPU time of this process is what is read
    model = mobilenet_v3_small().eval()
    data = [(torch.randn(size, 3, 64, 64), torch.arange(size)) for size in (6, 4)]
    workload = same_data(model, data, data[0][0][:2])
    seconds: dict[str, list[float]] = {"direct": [], "decomposed": []}
    files = set()
    for number in range(rounds + 1):
        for name, times in seconds.items():
            taken, onnx_bytes = measured(model, workload, direct=name == "direct")
            files.add(sha256(onnx_bytes))
            if number:
                times.append(round(taken, 3))
                print(f"round {number} of {rounds}: {name} {taken:.2f} s")
    if len(files) > 1:
        raise SystemExit("the two ways give different files: nothing is stored")
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    result = {
        "benchmark": "export-time",
        "environment": environment(Target()),
        "model": "mobilenet_v3_small, 64 by 64, batch, height and width free",
        "cpu_seconds": seconds,
        "medians": medians,
        "times_as_fast": round(medians["decomposed"] / medians["direct"], 3),
    }
    write_json(RESULT, result)
    print(f"{medians['decomposed']:.2f} s decomposed, {medians['direct']:.2f} s direct; stored in {RESULT}")


if __name__ == "__main__":
    main()
