"""How often timing one and the same file against itself claims a difference that is not there.

python -m benchmarks.aa [--tries 100] [--seconds 2.0] [--threads 1]
"""

import argparse
import json
import math

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from tqdm import tqdm

from benchmarks.stored import RESULTS
from compressor.intervals import score_estimate
from compressor.machine import environment
from compressor.measuring.timing import time_interleaved
from compressor.metrics import Metric
from compressor.storage import write_json
from compressor.target import Target

RESULT = RESULTS / "aa.json"


def convolutional_model(width: int = 32, layers: int = 6, size: int = 24) -> bytes:
    """A chain of 3x3 convolutions on (batch, 3, size, size), some 0.3 ms a sample."""
    generator = np.random.default_rng(0)
    nodes, weights, name, channels = [], [], "input", 3
    for layer in range(layers):
        weight = generator.standard_normal((width, channels, 3, 3)) / math.sqrt(9 * channels)
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"weight_{layer}"))
        nodes.append(helper.make_node("Conv", [name, f"weight_{layer}"], [f"conv_{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"conv_{layer}"], [f"relu_{layer}"]))
        name, channels = f"relu_{layer}", width
    nodes.append(helper.make_node("GlobalAveragePool", [name], ["output"]))
    graph = helper.make_graph(
        nodes,
        "aa",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, size, size])],
        [onnx.ValueInfoProto(name="output")],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def describe(what: str, hits: int, tries: int) -> dict[str, float]:
    """Prints and gives back a count with its interval."""
    share = score_estimate(torch.tensor([1.0] * hits + [0.0] * (tries - hits)), Metric.accuracy())
    print(f"{what}: {hits} of {tries} ({hits / tries:.1%}, 95 % interval {share.low:.1%} to {share.high:.1%})")
    return {"count": hits, "low": share.low, "high": share.high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=2.0, help="time for one comparison, as in a run")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    file, inputs = convolutional_model(), torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    where = environment(Target(threads=arguments.threads))
    timings = [
        time_interleaved(file, file, inputs, seed=seed, seconds=arguments.seconds, threads=arguments.threads)
        for seed in tqdm(range(arguments.tries), desc="A/A", unit="try")
    ]
    ratios = [timing.speedup for timing in timings]
    latency = float(np.median([timing.reference_ms.value for timing in timings]))
    width = float(np.median([ratio.high / ratio.low - 1 for ratio in ratios]))
    scatter = float(np.std([math.log(ratio.value) for ratio in ratios], ddof=1)) if len(ratios) > 1 else 0.0
    print(f"latency {latency:.3f} ms, median width of the interval {width:.2%}, scatter of the ratio {scatter:.2%}")
    faster = describe("claimed speed-ups", sum(ratio.low > 1 for ratio in ratios), len(ratios))
    slower = describe("claimed slow-downs", sum(ratio.high < 1 for ratio in ratios), len(ratios))
    write_json(
        RESULT,
        {
            "tries": len(ratios),
            "seconds": arguments.seconds,
            "claimed_speedups": faster,
            "claimed_slowdowns": slower,
            "latency_ms": latency,
            "interval_width": width,
            "scatter": scatter,
            "ratios": [[ratio.value, ratio.low, ratio.high] for ratio in ratios],
            "environment": where,
        },
    )
    print(f"stored in {json.dumps(str(RESULT))}")


if __name__ == "__main__":
    main()
