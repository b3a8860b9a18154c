"""Which of several sets of ranges disturbs a network's outputs least, measured on the network."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from compressor.files.graphs import copy_of
from compressor.progress.bars import progress_bar
from compressor.quantization.grids.schemes import Scheme, choose_affine, integer_bounds
from compressor.runtime import Feeds, open_session

Range = tuple[float, float]


def choose_ranges(
    model: onnx.ModelProto,
    candidates: Mapping[str, Mapping[str, Range]],
    slices: Sequence[Feeds],
    scheme: Scheme,
    *,
    signed: bool,
    threads: int = 1,
    progress: bool = False,
) -> tuple[str, dict[str, float]]:
    """(name of the best of `candidates`, {name: its error}); each gives all the same tensors a range.

    The error is the mean squared difference of the outputs of `model` over `slices`, relative to their power, with all
    the tensors rounded to their ranges' grids. The first wins where several are equal.
    """
    tensors = list(next(iter(candidates.values())))
    plain = open_session(model.SerializeToString(), threads=threads)
    names = {name: f"rounded_{number}" for number, name in enumerate(tensors)}
    rounding = open_session(rounding_graph(model, names).SerializeToString(), threads=threads)
    grids = {name: _grids(ranges, names, scheme, signed=signed) for name, ranges in candidates.items()}
    noise = dict.fromkeys(candidates, 0.0)
    power = 0.0
    for feeds in progress_bar(slices, desc="ranges", unit="slice", shown=progress):
        expected = [value.astype(np.float64) for value in plain.run(None, feeds) if value.dtype.kind == "f"]
        power += sum(float(np.square(value).sum()) for value in expected)
        for name, numbers in grids.items():
            got = [value for value in rounding.run(None, {**feeds, **numbers}) if value.dtype.kind == "f"]
            noise[name] += sum(float(np.square(a - b).sum()) for a, b in zip(got, expected, strict=True))
    errors = {name: value / max(power, float(np.finfo(np.float64).tiny)) for name, value in noise.items()}
    return min(errors, key=errors.__getitem__), errors


def _grids(ranges: Mapping[str, Range], names: Mapping[str, str], scheme: Scheme, *, signed: bool) -> Feeds:
    """Scale, lowest and highest step of every tensor's grid, as the inputs of the rounding graph."""
    feeds: Feeds = {}
    for name, (low, high) in ranges.items():
        scale, zero_point = choose_affine(torch.tensor(low), torch.tensor(high), scheme, signed=signed)
        least, most = (bound - int(zero_point) for bound in integer_bounds(scheme.bits, signed=signed))
        feeds |= grid_numbers(names[name], (float(scale), least, most))
    return feeds


def grid_numbers(given: str, grid: tuple[float, float, float] | None = None) -> Feeds:
    """What a rounding graph is fed for the tensor that it has the name `given` for: (scale, lowest, highest step).

    Without a `grid` it stays as it is.
    """
    parts = zip(("scale", "low", "high"), grid or (1.0, 0.0, 0.0), strict=True)
    numbers: Feeds = {f"{given}_{part}": np.array(value, dtype=np.float32) for part, value in parts}
    return numbers | {f"{given}_is_rounded": np.array(grid is not None)}


def rounding_graph(model: onnx.ModelProto, names: Mapping[str, str]) -> onnx.ModelProto:
    """`model` with every tensor of `names` rounded as scale * clip(round(x / scale), low, high) for its readers.

    Whether it is, and the three numbers, are inputs, called after the given name: one session serves all ranges, and
    what is not rounded takes no time. The integers are not stored, so that any number of bits will do.
    """
    result = copy_of(model)
    del result.graph.node[:]
    for output in result.graph.output:
        output.name = names.get(output.name, output.name)

    def after(tensor: str) -> None:
        rounded = names[tensor]
        scale, low, high = (f"{rounded}_{part}" for part in ("scale", "low", "high"))
        for value in (scale, low, high):
            result.graph.input.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, []))
        asked = f"{rounded}_is_rounded"
        result.graph.input.append(helper.make_tensor_value_info(asked, TensorProto.BOOL, []))
        steps = [
            ("Div", [tensor, scale], f"{rounded}_steps"),
            ("Round", [f"{rounded}_steps"], f"{rounded}_nearest"),
            ("Clip", [f"{rounded}_nearest", low, high], f"{rounded}_kept"),
            ("Mul", [f"{rounded}_kept", scale], f"{rounded}_value"),
        ]
        branches = {
            "then_branch": [helper.make_node(kind, inputs, [output], name=output) for kind, inputs, output in steps],
            "else_branch": [helper.make_node("Identity", [tensor], [f"{rounded}_same"], name=f"{rounded}_same")],
        }
        graphs = {
            name: helper.make_graph(nodes, name, [], [_float(nodes[-1].output[0])]) for name, nodes in branches.items()
        }
        result.graph.node.append(helper.make_node("If", [asked], [rounded], name=rounded, **graphs))

    for value in model.graph.input:
        if value.name in names:
            after(value.name)
    for node in model.graph.node:
        copy = result.graph.node.add()
        copy.CopyFrom(node)
        for position, name in enumerate(copy.input):
            copy.input[position] = names.get(name, name)
        for name in node.output:
            if name in names:
                after(name)
    return result


def _float(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
