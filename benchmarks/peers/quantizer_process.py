"""One quantizer of somebody else, run in an interpreter of its own: a float ONNX file in, a quantized one out.

    python -m benchmarks.peers.quantizer_process TOOL float.onnx calibration.npz quantized.onnx [--iterations 1000]

TOOL is `nncf`, `aimet`, `aimet-w4` or `aimet-adaround-w4`. `benchmarks.quantization.quantizers` calls it with the
interpreter of an environment that holds the tool (`make .venv-nncf`, `make .venv-aimet`): these packages pin what
others need newer. Prints one line of JSON: the tool's version and the seconds that quantization took, without imports.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import onnx

# Nothing leaves the machine.
os.environ["NNCF_CI"] = "1"


def nncf(model: onnx.ModelProto, batches: list[dict], _iterations: int) -> tuple[onnx.ModelProto, str]:
    """Post-training quantization as documented: the mixed preset (symmetric weights), fast bias correction."""
    import nncf as tool

    dataset = tool.Dataset(batches)
    quantized = tool.quantize(
        model,
        dataset,
        subset_size=len(batches),
        target_device=tool.TargetDevice.CPU,
        preset=tool.QuantizationPreset.MIXED,
    )
    return quantized, tool.__version__


def aimet(model: onnx.ModelProto, batches: list[dict], _iterations: int) -> tuple[onnx.ModelProto, str]:
    """8 bits with cross-layer equalization, as its documentation advises before anything else."""
    from aimet_onnx.cross_layer_equalization import equalize_model

    equalize_model(model)
    return _simulate(model, batches, bits=8, rounding=0)


def aimet_w4(model: onnx.ModelProto, batches: list[dict], _iterations: int) -> tuple[onnx.ModelProto, str]:
    """4-bit weights rounded to the nearest, 8-bit activations."""
    return _simulate(model, batches, bits=4, rounding=0)


def aimet_adaround_w4(model: onnx.ModelProto, batches: list[dict], iterations: int) -> tuple[onnx.ModelProto, str]:
    """4-bit weights with AdaRound, 8-bit activations."""
    return _simulate(model, batches, bits=4, rounding=iterations)


def _simulate(model: onnx.ModelProto, batches: list[dict], *, bits: int, rounding: int) -> tuple[onnx.ModelProto, str]:
    import aimet_onnx as tool

    simulation = tool.QuantizationSimModel(model, param_type=f"int{bits}", activation_type="int8")
    if rounding:
        tool.apply_adaround(simulation, batches, num_iterations=rounding)
    simulation.compute_encodings(batches)
    return simulation.to_onnx_qdq(export_int32_bias=True, prequantize_constants=True), tool.__version__


TOOLS = {"nncf": nncf, "aimet": aimet, "aimet-w4": aimet_w4, "aimet-adaround-w4": aimet_adaround_w4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool", choices=list(TOOLS))
    parser.add_argument("source", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--iterations", type=int, default=1000, help="steps of AdaRound for every layer")
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    model = onnx.load(arguments.source)
    arrays = dict(np.load(arguments.calibration))
    count = len(next(iter(arrays.values())))
    batches = [
        {name: values[start : start + arguments.batch] for name, values in arrays.items()}
        for start in range(0, count, arguments.batch)
    ]
    _import(arguments.tool)
    started = time.perf_counter()
    quantized, version = TOOLS[arguments.tool](model, batches, arguments.iterations)
    seconds = time.perf_counter() - started
    onnx.save(quantized, arguments.result)
    print(json.dumps({"version": version, "seconds": seconds}))


def _import(tool: str) -> None:
    __import__("nncf" if tool == "nncf" else "aimet_onnx")


if __name__ == "__main__":
    main()
