"""Which integer form each operator of an ONNX graph takes, and why the others stay in float."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx

from compressor.errors import StageError
from compressor.files.converting.precision import FLOAT_NAMES
from compressor.files.graphs import all_nodes, initializers
from compressor.files.operators import Fact, Family, operator_of
from compressor.quantization.placement.forms import (
    ByEvidence,
    ByFamily,
    Dynamic,
    Fastest,
    Float16,
    Form,
    Static,
    WeightOnly,
)
from compressor.quantization.placement.inner_layers import places_inside, stored_twice
from compressor.quantization.placement.movement import follows
from compressor.quantization.placement.recurrent_cells import hidden_units, recurrence_of, why_no_cells
from compressor.quantization.placement.transposed_convolutions import why_transposed

_NO_TRANSPOSED = "no int8 kernel for ConvTranspose"
_VECTOR = "its weight is a vector: turning what it reads into integers would take as long as the product"
_STORED = "its weights are stored as {kind} and computed in float32"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Names of the nodes that take each form, and why the other heavy ones stay in float."""

    static: tuple[str, ...] = ()
    dynamic: tuple[str, ...] = ()
    weight_only: tuple[str, ...] = ()
    float16: tuple[str, ...] = ()
    left: Mapping[str, str]

    def without(self, reasons: Mapping[str, str]) -> "Placement":
        """The same with the nodes that `reasons` names in float."""
        static, dynamic, weight_only, float16 = (
            tuple(name for name in names if name not in reasons)
            for names in (self.static, self.dynamic, self.weight_only, self.float16)
        )
        return Placement(
            static=static,
            dynamic=dynamic,
            weight_only=weight_only,
            float16=float16,
            left={**self.left, **reasons},
        )


def placement_of(graph: onnx.ModelProto, form: Form, skip: tuple[str, ...]) -> Placement:
    """Which form each weight-bearing node takes. Raises StageError for a skip pattern that matches no node."""
    if isinstance(form, Fastest | ByEvidence):
        raise StageError(f"{form} is a choice between forms, which Quantize makes; place one of them")
    constants = set(initializers(graph.graph))
    sequential = _is_sequence_model(graph, constants)
    transposed = why_transposed(graph)
    other_floats = {
        tensor.name: FLOAT_NAMES[tensor.data_type]
        for tensor in graph.graph.initializer
        if tensor.data_type in FLOAT_NAMES
    }
    vectors = {tensor.name for tensor in graph.graph.initializer if len(tensor.dims) == 1}
    static: list[str] = []
    dynamic: list[str] = []
    weight_only: list[str] = []
    float16: list[str] = []
    left: dict[str, str] = {}
    used: set[str] = set()
    for node in graph.graph.node:
        embedding = node.op_type == "Gather" and node.input[0] in constants
        if not operator_of(node.op_type).heavy and not embedding:
            continue
        matched = [pattern for pattern in skip if matches(node.name, pattern)]
        used.update(matched)
        if matched:
            left[node.name] = f"skipped by the pattern {matched[0]!r}"
            continue
        held = node.input[0] if embedding else [*node.input, ""][1]
        if held in other_floats:
            left[node.name] = f"its weights are {other_floats[held]}, and kernels on integers give single precision"
            continue
        constant_weight = len(node.input) > 1 and node.input[1] in constants
        if isinstance(form, WeightOnly | Float16):
            if embedding or constant_weight:
                stored, kind = (weight_only, "integers") if isinstance(form, WeightOnly) else (float16, "float16")
                stored.append(node.name)
                left[node.name] = _STORED.format(kind=kind)
            else:
                left[node.name] = "its weight is computed at run time"
            continue
        is_dynamic = isinstance(form, Dynamic) or (isinstance(form, ByFamily) and sequential)
        match node.op_type:
            case "Conv" | "ConvTranspose" if isinstance(form, Dynamic):
                left[node.name] = "dynamic convolutions run 4.5 times slower than float; use ByFamily() or Static()"
            case "Conv" | "ConvTranspose" if not constant_weight:
                left[node.name] = "its weight is computed at run time"
            case "ConvTranspose":
                left[node.name] = _NO_TRANSPOSED
                if node.name in transposed:
                    left[node.name] += f": {transposed[node.name]}"
            case "Conv":
                static.append(node.name)
            case "LSTM" if not isinstance(form, Static) and constant_weight:
                dynamic.append(node.name)
            case "LSTM":
                left[node.name] = "no static int8 kernel for LSTM; use ByFamily() or Dynamic()"
            case "GRU" | "RNN":
                unfit = why_no_cells(node, constants)
                narrow = isinstance(form, ByFamily) and hidden_units(node) < recurrence_of(node).cells_from
                if not isinstance(form, Static) and unfit is None and not narrow:
                    dynamic.append(node.name)
                    continue
                left[node.name] = f"no int8 kernel for {node.op_type}"
                if unfit is not None:
                    left[node.name] += f", and it cannot be written out as cells: {unfit}"
                if isinstance(form, ByFamily) and constant_weight:
                    weight_only.append(node.name)
                    left[node.name] += f": {_STORED.format(kind='integers')}"
            case "Gather" if sequential or is_dynamic:
                # Looking up integers needs no range of anything, whatever form the products take.
                dynamic.append(node.name)
            case "Gather":
                pass
            case _ if held in vectors:
                left[node.name] = _VECTOR
            case _ if is_dynamic and constant_weight:
                dynamic.append(node.name)
            case _ if is_dynamic:
                left[node.name] = "a product of two activations: dynamic quantization needs a constant weight"
            case _:
                static.append(node.name)
    for place in places_inside(graph):
        matched = [pattern for pattern in skip if matches(place.name, pattern)]
        used.update(matched)
        if matched:
            left[place.name] = f"skipped by the pattern {matched[0]!r}"
        elif place.unfit:
            left[place.name] = place.unfit
        elif isinstance(form, ByFamily | Dynamic):
            dynamic.append(place.name)
        else:
            left[place.name] = f"it is inside of {place.owner}, where {type(form).__name__}() has no form"
    unused = [pattern for pattern in skip if pattern not in used]
    if unused:
        names = [node.name for node in all_nodes(graph.graph) if operator_of(node.op_type).heavy]
        raise StageError(f"skip {unused} matches no node; the nodes are {', '.join(names)}")
    placement = Placement(
        static=tuple(static),
        dynamic=tuple(dynamic),
        weight_only=tuple(weight_only),
        float16=tuple(float16),
        left=left,
    )
    return placement.without(stored_twice(graph, {*static, *dynamic, *weight_only, *float16}))


def _is_sequence_model(graph: onnx.ModelProto, constants: set[str]) -> bool:
    """Whether linear layers stand in a recurrent net or a transformer, whose activations' ranges vary by the input."""
    floats = {tensor.name for tensor in graph.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    for node in graph.graph.node:
        row = operator_of(node.op_type)
        if row.family in {Family.RECURRENT, Family.NORM, Family.ATTENTION} and Fact.FUSED not in row.facts:
            return True
        if node.op_type == "Gather" and node.input[0] in floats:
            return True
        if node.op_type == "MatMul" and not constants.intersection(node.input):
            return True
    return False


def matches(name: str, pattern: str) -> bool:
    """Whether a node of that name is meant by the glob `pattern`, over node names and module paths."""
    # A module path stands for all that the module does: `layer3` for `layer3.0.conv1`.
    return any(fnmatchcase(name, candidate) for candidate in (pattern, f"{pattern}[._/]*"))


def followers(model: onnx.ModelProto, static: set[str], apart: Collection[str] = ()) -> list[str]:
    """The nodes between static ones that work on 8-bit tensors as well: all their inputs come from quantized nodes.

    What is kept `apart` stays in float.
    """
    constants = initializers(model.graph)
    eight_bit: set[str] = set()
    names = []
    for node in model.graph.node:
        activations = [name for name in node.input if name and name not in constants]
        if node.name in static:
            eight_bit.update(node.output)
        elif node.name not in apart and follows(node) and activations and eight_bit.issuperset(activations):
            eight_bit.update(node.output)
            names.append(node.name)
    return names
