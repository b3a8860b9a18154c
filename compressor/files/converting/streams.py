"""Pairs of a file's outputs and inputs between which a state is carried from one step of a stream to the next."""

from collections.abc import Mapping
from pathlib import Path

import onnx

from compressor.checks import did_you_mean
from compressor.errors import OnnxFileError
from compressor.files.declarations import given_inputs


def check_streams(model: onnx.ModelProto, streams: Mapping[str, str], path: Path) -> None:
    """Raises OnnxFileError for `streams` (output -> input) of which the file has none, or of another type or shape."""
    outputs = {value.name: value for value in model.graph.output}
    inputs = {value.name: value for value in given_inputs(model)}
    for output, state in streams.items():
        for side, name, known in (("output", output, outputs), ("input", state, inputs)):
            if name not in known:
                raise OnnxFileError(
                    f"streams names the {side} {name!r}, and {path} has the {side}s {', '.join(known)}"
                    f"{did_you_mean(name, known)}; pairs are output=input: the state that a step gives, and what the "
                    "next one is given it as"
                )
        before, after = inputs[state].type.tensor_type, outputs[output].type.tensor_type
        sizes = [[dim.dim_value for dim in each.shape.dim] for each in (before, after)]
        apart = after.HasField("shape") and (
            len(sizes[0]) != len(sizes[1]) or any(0 < one != other > 0 for one, other in zip(*sizes, strict=True))
        )
        if before.elem_type != after.elem_type or apart:
            told = [f"{onnx.TensorProto.DataType.Name(each.elem_type).lower()}" for each in (before, after)]
            raise OnnxFileError(
                f"the output {output!r} of {path}, {told[1]} of shape {_shape(sizes[1])}, cannot be the input "
                f"{state!r} of the next step, {told[0]} of shape {_shape(sizes[0])}"
            )
    if len(set(streams.values())) < len(streams):
        raise OnnxFileError(f"streams names an input twice: {', '.join(streams.values())}; each is one output's")
    if streams and len(streams) == len(inputs):
        raise OnnxFileError(
            f"streams names all inputs of {path}, and a stream needs one that is new at every step; leave one out"
        )


def _shape(sizes: list[int]) -> str:
    return f"({', '.join(str(size) if size > 0 else '?' for size in sizes)})"
