"""ONNX's Scan: a graph that runs once for every step of its inputs and hands a state on."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from compressor.errors import StageError
from compressor.quantization.torch_graph.operators import Call


def scan(call: Call, run: Callable[[Sequence[Tensor]], list[Tensor]]) -> tuple[Tensor, ...]:
    """(last states, outputs of all steps stacked along axis 0); `run` gives the body's outputs for its inputs.

    Raises StageError where steps lie along another axis than the first.
    """
    if any(call.get("scan_input_axes", [])) or any(call.get("scan_output_axes", [])):
        raise StageError(
            f"Scan {call.name!r} walks along another axis than the first and has no form in torch here; export the "
            "model with its steps first, or quantize without training"
        )
    count = call.attributes["num_scan_inputs"]
    tensors = [call.tensor(position) for position in range(len(call.inputs))]
    states, scanned = tensors[: len(tensors) - count], tensors[len(tensors) - count :]
    backwards = call.get("scan_input_directions", [0] * count)
    columns = [(values.flip(0) if back else values).unbind() for values, back in zip(scanned, backwards, strict=True)]
    rows: list[list[Tensor]] = []
    for step in zip(*columns, strict=True):
        results = run([*states, *step])
        states = results[: len(states)]
        rows.append(results[len(states) :])
    if not rows:
        raise StageError(f"Scan {call.name!r} has no step to run; give it inputs of at least one")
    stacked = [torch.stack(column) for column in zip(*rows, strict=True)]
    turned = call.get("scan_output_directions", [0] * len(stacked))
    return *states, *(values.flip(0) if back else values for values, back in zip(stacked, turned, strict=True))
