"""The time of an ONNX file as the sum of its operators' times in a latency table, and what those operators are.

ONNX Runtime runs one operator after the other, so their times add up. They are read from what it really runs, after its
fusions and changes of layout: the file runs once, and the profile gives the shapes that every operator met.
"""

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from compressor.batches import Inputs
from compressor.files.graphs import all_graphs, all_nodes, attributes, initializers, inner_graphs
from compressor.files.operators import Arithmetic, Fact, Family, operator_of
from compressor.files.operators import Operator as Known
from compressor.latency.operators import Operator, light, linear, matmul, recurrent
from compressor.latency.table import LatencyTable
from compressor.runtime import feeds_of, load_session, session_options
from compressor.workload import resize_batch

Shape = list[int]

# Inputs of norms before the one that holds the data, or beside it, are parameters.
_NORMS = (Family.NORM, Family.RESIDUAL_NORM)
_REDUCING = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "GlobalAveragePool", "QLinearGlobalAveragePool"})


def operators_of_graph(
    onnx_bytes: bytes, inputs: Inputs, batch: int = 1, *, layout: bool = True
) -> tuple[Operator, ...]:
    """What ONNX Runtime runs for `batch` samples of `inputs`, in the order in which it runs it, then the call itself.

    A float file's products are open to either precision; in a quantized one every operator says its own. With
    `layout=False` the fusions that depend on this machine's blocked float layout are left out: widths are those of the
    file, not padded to whole blocks. Raises ValueError for files that cannot be loaded or fed `inputs`.
    """
    graph = _Graph(_profiled(onnx_bytes, resize_batch(inputs, batch), layout=layout))
    found = [operator for run in graph.runs for operator in _operators(run, graph)]
    return (*found, light("Call", 1))


def predict_ms(onnx_bytes: bytes, inputs: Inputs, table: LatencyTable, *, precision: str = "float32") -> float:
    """The milliseconds of a call with `table.target.batch_size` samples of `inputs`, as the table adds them up.

    `precision="int8"` for a float file gives the time that it would have quantized: convolutional networks statically,
    recurrent ones and transformers dynamically. A quantized file counts as it is.
    """
    operators = operators_of_graph(onnx_bytes, inputs, table.target.batch_size, layout=precision == "float32")
    return table.total(operators, precision)


@dataclass(frozen=True)
class _Run:
    """One node at one turn: its shapes, attributes, and whether each input is a constant."""

    kind: str
    inputs: list[Shape]
    outputs: list[Shape]
    names: list[str]
    attributes: Mapping[str, Any]
    types: list[str]

    def shape(self, index: int) -> Shape:
        """The shape of the input at `index` of the node; the profile leaves out inputs that are absent."""
        present = [position for position, name in enumerate(self.names) if name]
        return self.inputs[present.index(index)]

    def has(self, index: int) -> bool:
        return index < len(self.names) and bool(self.names[index])

    @property
    def row(self) -> Known:
        return operator_of(self.kind)

    @property
    def family(self) -> Family | None:
        return self.row.family

    @property
    def on_integers(self) -> bool:
        # The kernel of stored weights multiplies floats.
        return self.row.multiplies_integers and self.row.arithmetic is not Arithmetic.STORED


@dataclass
class _Profile:
    model: onnx.ModelProto
    events: list[dict[str, Any]]


def _profiled(onnx_bytes: bytes, inputs: Inputs, *, layout: bool) -> _Profile:
    with tempfile.TemporaryDirectory() as folder:
        options = session_options()
        if not layout:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        # The profile forgets the shapes of weights that were repacked.
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = load_session(onnx_bytes, options)
        session.run(None, feeds_of(session, inputs))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        model = onnx.load(options.optimized_model_filepath)
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    return _Profile(model, kernels)


@dataclass
class _Graph:
    """The nodes that ran, and what of the whole graph their form depends on."""

    profile: _Profile
    constants: set[str] = field(default_factory=set)
    runs: list[_Run] = field(default_factory=list)
    quantized: bool = False
    sequences: bool = False

    def __post_init__(self) -> None:
        nodes: dict[str, onnx.NodeProto] = {}
        nameless: dict[str, list[onnx.NodeProto]] = {}
        for graph in all_graphs(self.profile.model.graph):
            self.constants |= initializers(graph).keys()
        for node in all_nodes(self.profile.model.graph):
            if node.name:
                nodes[node.name] = node
            else:
                nameless.setdefault(node.op_type, []).append(node)
            if node.op_type == "Constant":
                self.constants.update(node.output)
        for event in self.profile.events:
            name, kind = event["name"], event["args"]["op_name"]
            if name.removesuffix("_kernel_time") not in nodes and nameless.get(kind):
                # Fusions leave some nodes without a name, and the profile makes one up.
                nodes[name.removesuffix("_kernel_time")] = nameless[kind].pop(0)
            ran = nodes.get(name.removesuffix("_kernel_time"))
            # The bodies of branches and loops ran as nodes of their own.
            if ran is not None and not inner_graphs(ran):
                self.runs.append(_run(ran, event["args"]))
        self.quantized = any(run.on_integers for run in self.runs)
        # The same distinction by which quantization chooses static or dynamic ranges for linear layers.
        self.sequences = any(
            run.family in {Family.RECURRENT, Family.ATTENTION, *_NORMS}
            or (run.kind == "Gather" and run.names[0] in self.constants and "float" in run.types[:1])
            or (run.kind in {"MatMul", "FusedMatMul"} and not self.constants.intersection(run.names))
            for run in self.runs
        )


def _run(node: onnx.NodeProto, details: Mapping[str, Any]) -> _Run:
    described = details.get("input_type_shape", [])
    return _Run(
        kind=node.op_type,
        inputs=[next(iter(entry.values()), []) for entry in described],
        outputs=[next(iter(entry.values()), []) for entry in details.get("output_type_shape", [])],
        names=list(node.input),
        attributes=attributes(node),
        types=[next(iter(entry), "") for entry in described],
    )


def _operators(run: _Run, graph: _Graph) -> list[Operator]:
    if not run.outputs or not all(map(math.prod, run.outputs)):
        return []
    if run.family is Family.CONVOLUTION:
        found = [_convolution(run)]
    elif run.family is Family.RECURRENT:
        found = [_recurrent(run)]
    elif run.family is Family.MATRIX and run.row.arithmetic is not Arithmetic.STORED:
        found = [_product(run, graph)]
    elif run.family is Family.ATTENTION:
        found = _attention(run)
    else:
        found = [_light(run)]
    if graph.quantized:
        precision = "int8" if run.on_integers else "float32"
        return [replace(operator, precision=precision) for operator in found]
    # Between dynamically quantized layers everything else stays in float.
    fixed = "float32" if graph.sequences else ""
    return [replace(operator, precision=fixed) if operator.kind == "light" else operator for operator in found]


def _convolution(run: _Run) -> Operator:
    attributes, integer = run.attributes, run.kind == "QLinearConv"
    shape, weight = list(run.shape(0)), run.shape(3 if integer else 1)
    made = list(run.outputs[0])
    if attributes.get("channels_last", 0) or run.kind == "NhwcFusedConv":
        shape, made = [shape[0], shape[-1], *shape[1:-1]], [made[0], made[-1], *made[1:-1]]
    size, kernel, count = shape[2:], weight[2:], len(shape) - 2
    strides, dilations = (attributes.get(name, [1] * count) for name in ("strides", "dilations"))
    groups = attributes.get("group", 1)
    flags = [flag for flag, present in (("relu", "activation" in attributes), ("add", run.has(3))) if present]
    transposed = run.kind == "ConvTranspose"
    return Operator(
        kind="conv_transpose" if transposed else "conv",
        inputs=shape[1],
        outputs=weight[1] * groups if transposed else weight[0],
        batch=shape[0],
        size=tuple(size),
        kernel=tuple(kernel),
        stride=tuple(strides),
        padding=tuple(
            _padding(attributes, size, made[2:], [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)])
        ),
        dilation=tuple(dilations),
        groups=groups,
        flags=() if integer else tuple(flags),
    )


def _padding(attributes: Mapping[str, Any], size: Shape, made: Shape, spans: Shape) -> list[int]:
    automatic = attributes.get("auto_pad", b"NOTSET")
    if automatic in {b"NOTSET", b""} or "pads" in attributes:
        return list(attributes.get("pads", [0] * (2 * len(size))))
    # What the automatic padding came to follows from the sizes on both sides.
    strides = attributes.get("strides", [1] * len(size))
    sizes = zip(size, made, spans, strides, strict=True)
    total = [max(0, (after - 1) * stride + span - before) for before, after, span, stride in sizes]
    begins = [pad - pad // 2 if automatic == b"SAME_LOWER" else pad // 2 for pad in total]
    return [*begins, *(pad - begin for pad, begin in zip(total, begins, strict=True))]


def _recurrent(run: _Run) -> Operator:
    steps, batch, inputs = run.shape(0)
    # A quantized layer has its weights transposed.
    hidden = run.attributes["hidden_size"]
    both = run.attributes.get("direction", b"forward") == b"bidirectional"
    assert run.row.recurrence is not None
    return recurrent(run.row.recurrence.cell.lower(), inputs, hidden, steps, batch=batch, bidirectional=both)


def _product(run: _Run, graph: _Graph) -> Operator:
    position = run.row.inputs.weights[0]
    left, made = run.shape(0), run.outputs[0]
    rows = made[-2] if len(made) > 1 and len(left) > 1 else 1
    inner = left[-1] if len(left) < 2 else math.prod(left[-2:]) // max(1, rows)
    if run.names[position] not in graph.constants:
        return matmul(rows, inner, made[-1], batch=math.prod(made[:-2]))
    flags = ["relu"] if "activation" in run.attributes else []
    if run.row.arithmetic is Arithmetic.DYNAMIC or (graph.sequences and not graph.quantized):
        flags.append("dynamic")
    return linear(inner, made[-1], math.prod(made[:-1]), flags=flags)


def _attention(run: _Run) -> list[Operator]:
    heads = run.attributes["num_heads"]
    batch, length, *_ = run.shape(0)
    width = run.outputs[0][-1] // heads
    packed = run.kind != "MultiHeadAttention"
    other = length
    if not packed and run.has(1):
        key = run.shape(1)
        other = key[-2] if len(key) == 4 else key[1]
    found = [linear(run.shape(0)[-1], run.shape(1)[-1], batch * length, flags=["dynamic"])] if packed else []
    return [
        *found,
        matmul(length, width, other, batch=batch * heads),
        light("Softmax", batch * heads * length * other, row=other),
        matmul(length, other, width, batch=batch * heads),
    ]


def _light(run: _Run) -> Operator:
    first = run.inputs[0] if run.inputs else []
    # What looks up or cuts out touches what it gives, not all that it takes from; what reduces, all that it takes.
    shape = first if run.kind in _REDUCING else run.outputs[0]
    elements, row = math.prod(shape), 1
    if run.kind == "Softmax":
        row = shape[int(run.attributes.get("axis", -1))] if shape else 1
    elif run.family in _NORMS:
        row = shape[-1] if shape else 1
    elif run.kind == "BatchNormalization":
        row = max(1, elements // max(1, shape[1]))
    elif run.kind in _REDUCING:
        row = max(1, elements // math.prod(run.outputs[0]))
    elif run.kind == "Transpose":
        return _transposition(first, run.attributes.get("perm", [*reversed(range(len(first)))]))
    elif Fact.BROADCASTS in run.row.facts and min(map(math.prod, run.inputs)) < elements:
        # A bias or a scale: it is met again and again.
        row = min(map(math.prod, run.inputs))
    return light(run.kind, elements, row=row)


def _transposition(shape: Shape, order: Sequence[int]) -> Operator:
    """What moves: single elements (rows of 1), rows that stay together, or nothing that is not next to another."""
    elements, moved = math.prod(shape), [axis for axis in order if shape[axis] > 1]
    if moved == sorted(moved):
        return light("Concat", elements)
    row = 1
    for axis, last in zip(reversed(moved), sorted(moved, reverse=True), strict=True):
        if axis != last:
            break
        row *= shape[axis]
    return light("Transpose", elements, row=row)


def summary(operators: Sequence[Operator]) -> dict[str, int]:
    """How many operators of each kind there are; light ones under their ONNX names."""
    found: dict[str, int] = {}
    for operator in operators:
        name = operator.flags[0] if operator.kind == "light" else operator.kind
        found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items()))
