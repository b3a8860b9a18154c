"""A quantized ONNX file as it runs on an x86 CPU whose 8-bit products saturate, on whatever CPU this is.

ONNX Runtime fuses the graph as it would there; the products that could saturate are computed here (`saturation`,
`integer_kernels`), all else by ONNX Runtime. Outputs agree bit for bit with those of its AVX2 and AVX-512 kernels for
convolutions and matrix products, up to rare roundings for LSTMs. With sums in 32 bits, the
same shows on such a CPU what all others compute (`exact_run`).
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compressor.checks import told_reasons
from compressor.errors import StageError
from compressor.files.graphs import attributes, initializers, names_read
from compressor.files.operators import operator_of
from compressor.quantization.other_cpus.integer_kernels import (
    Product,
    dynamic_quantize_lstm,
    dynamic_quantize_matmul,
    lstm_is_plain,
    matmul_integer,
    matmul_integer_to_float,
    qgemm,
    qlinear_conv,
    qlinear_matmul,
)
from compressor.quantization.other_cpus.saturation import SATURATING, exact_product, saturated_product, saturating_pairs
from compressor.runtime import Feeds, load_session, session_options
from compressor.target import detect_isa

Array = NDArray[Any]


KERNELS: Mapping[str, Callable[..., Any]] = {
    "QLinearConv": qlinear_conv,
    "QLinearMatMul": qlinear_matmul,
    "QGemm": qgemm,
    "MatMulInteger": matmul_integer,
    "MatMulIntegerToFloat": matmul_integer_to_float,
    "DynamicQuantizeMatMul": dynamic_quantize_matmul,
    "DynamicQuantizeLSTM": dynamic_quantize_lstm,
}


@dataclass(kw_only=True)
class Saturation:
    """How much of one node's work saturated, over all that was run.

    `risky_pairs` of `weight_pairs` pairs of neighbouring weights could saturate for some activations;
    `saturated_pairs` pairs of products did, and of `sums` output sums `saturated_sums` held at least one of them.
    """

    weight_pairs: int
    risky_pairs: int
    saturated_pairs: int = 0
    sums: int = 0
    saturated_sums: int = 0

    @property
    def sum_share(self) -> float:
        """The fraction of output sums that are wrong."""
        return self.saturated_sums / self.sums if self.sums else 0.0


@dataclass(kw_only=True)
class _Segment:
    """Consecutive nodes that ONNX Runtime computes."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    session: ort.InferenceSession | None = None


class SaturatingModel:
    """The file on an x86 CPU without VNNI; `saturation` counts, by node, what saturated in the runs so far.

    `saturation` holds the nodes with signed constant weights, unsigned activations and a kernel that adds pairs: the
    others cannot saturate. `not_emulated` names those that may saturate but are run as this CPU runs them, and why.
    Without `fused` the nodes are those of the file, but for constants that are folded.
    """

    def __init__(self, onnx_bytes: bytes, *, fused: bool = True) -> None:
        self._model = _optimized(onnx_bytes, fused=fused)
        graph = self._model.graph
        self._constants = initializers(graph)
        self._values = {name: numpy_helper.to_array(tensor) for name, tensor in self._constants.items()}
        self._attributes: dict[int, dict[str, Any]] = {}
        self.saturation: dict[str, Saturation] = {}
        self.not_emulated: dict[str, str] = {}
        self._outputs = [value.name for value in graph.output]
        self._steps = self._plan(graph)

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """The graph's outputs, in order, for its inputs by name."""
        return self._run(feeds, self._counted)

    def run_exactly(self, feeds: Mapping[str, Array]) -> list[Array]:
        """The outputs where products add up in 32 bits, as with VNNI and on Arm; counts nothing."""
        return self._run(feeds, lambda _: exact_product)

    def _run(self, feeds: Mapping[str, Array], product_of: Callable[[str], Product]) -> list[Array]:
        values: Feeds = {value.name: feeds[value.name] for value in self._model.graph.input if value.name in feeds}
        for step in self._steps:
            if isinstance(step, _Segment):
                # Nothing reads a segment without outputs: it holds nodes that a file need not have.
                values.update(self._run_segment(step, values) if step.outputs else {})
            else:
                results = self._run_node(step, values, product_of(step.name))
                values.update((name, value) for name, value in zip(step.output, results, strict=False) if name)
        return [values[name] if name in values else self._values[name] for name in self._outputs]

    def _plan(self, graph: onnx.GraphProto) -> list[_Segment | onnx.NodeProto]:
        steps: list[_Segment | onnx.NodeProto] = []
        for node in graph.node:
            if self._is_emulated(node):
                steps.append(node)
                continue
            if not steps or not isinstance(steps[-1], _Segment):
                steps.append(_Segment())
            segment = steps[-1]
            assert isinstance(segment, _Segment)
            segment.nodes.append(node)
        produced: dict[str, int] = {value.name: -1 for value in graph.input}
        for index, step in enumerate(steps):
            for node in _nodes(step):
                produced.update((name, index) for name in node.output if name)
        for index, step in enumerate(steps):
            for name in dict.fromkeys(name for node in _nodes(step) for name in names_read(node)):
                source = produced.get(name, index)
                if source == index:
                    continue
                if isinstance(step, _Segment):
                    step.inputs.append(name)
                _offer(steps, source, name)
        for name in self._outputs:
            _offer(steps, produced.get(name, -1), name)
        return steps

    def _is_emulated(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in KERNELS:
            if node.op_type == "ConvInteger":
                self.not_emulated[node.name] = "ConvInteger is not emulated; quantize convolutions with static ranges"
            return False
        operands = operator_of(node.op_type).inputs
        weights = [self._constants.get(node.input[position]) for position in operands.weights]
        if any(tensor is None or tensor.data_type != TensorProto.INT8 for tensor in weights):
            # Unsigned weights are widened first; computed ones are unsigned activations.
            return False
        # The zero point of the activations has their type; a kernel that quantizes them itself takes none.
        where, _ = operands.integers.get(0, (None, 0))
        if where is not None and len(node.input) > where:
            zero = self._constants.get(node.input[where])
            if zero is not None and zero.data_type == TensorProto.INT8:
                return False
        arrays = [self._values[node.input[position]] for position in operands.weights]
        settings = attributes(node)
        if node.op_type == "QLinearConv" and arrays[0].shape[1] == 1 and len(arrays[0]) == settings.get("group", 1):
            # Depthwise kernels widen to 32 bits before they add.
            return False
        matrices = [matrix for array in arrays for matrix in _matrices(node.op_type, array, settings)]
        risky = sum(len(saturating_pairs(matrix)[0]) for matrix in matrices)
        total = sum(len(matrix) * ((matrix.shape[1] + 1) // 2) for matrix in matrices)
        self.saturation[node.name] = Saturation(weight_pairs=total, risky_pairs=risky)
        if not risky:
            return False
        if node.op_type == "DynamicQuantizeLSTM" and not lstm_is_plain(settings, node.input):
            self.not_emulated[node.name] = "an LSTM with peepholes, lengths, clipping or its own activations"
            return False
        self._attributes[id(node)] = settings
        return True

    def _counted(self, name: str) -> Product:
        """The saturated product of the node `name`, which counts in `saturation` what it cuts off."""
        seen = self.saturation[name]

        def product(weights: NDArray[np.int8], columns: NDArray[np.uint8]) -> NDArray[np.int32]:
            result = saturated_product(weights, columns)
            seen.saturated_pairs += result.pairs
            seen.sums += result.values.size
            seen.saturated_sums += result.sums
            return result.values

        return product

    def _run_node(self, node: onnx.NodeProto, values: Mapping[str, Array], product: Product) -> tuple[Array, ...]:
        inputs = [(values[name] if name in values else self._values[name]) if name else None for name in node.input]
        results = KERNELS[node.op_type](self._attributes[id(node)], inputs, product)
        return results if isinstance(results, tuple) else (results,)

    def _run_segment(self, segment: _Segment, values: Mapping[str, Array]) -> Feeds:
        feeds = {name: np.ascontiguousarray(values[name]) for name in segment.inputs}
        if segment.session is None:
            segment.session = self._open(segment, feeds)
        return dict(zip(segment.outputs, segment.session.run(segment.outputs, feeds), strict=True))

    def _open(self, segment: _Segment, feeds: Feeds) -> ort.InferenceSession:
        used = {name for node in segment.nodes for name in names_read(node)}
        graph = helper.make_graph(
            segment.nodes,
            "segment",
            [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(value.dtype), [f"{name}_{axis}" for axis in range(value.ndim)]
                )
                for name, value in feeds.items()
            ],
            [onnx.ValueInfoProto(name=name) for name in segment.outputs],
            [tensor for name, tensor in self._constants.items() if name in used],
        )
        model = helper.make_model(
            graph, opset_imports=list(self._model.opset_import), ir_version=self._model.ir_version
        )
        options = session_options()
        # The graph is optimized already; once more might fuse across what was cut.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return load_session(model.SerializeToString(), options)


def emulated(onnx_bytes: bytes, *, fused: bool = True) -> SaturatingModel:
    """The file as a `SaturatingModel`. Raises StageError where it holds products that are not emulated."""
    model = SaturatingModel(onnx_bytes, fused=fused)
    if model.not_emulated:
        reasons = told_reasons(model.not_emulated)
        raise StageError(f"the file cannot be checked for CPUs without VNNI: {reasons}")
    return model


def exact_run(onnx_bytes: bytes, *, fused: bool = True) -> Callable[[Feeds], list[Array]]:
    """What gives the file's outputs for its inputs by name where products add up in 32 bits, on whatever CPU this is.

    ONNX Runtime's own kernels, but for those that would saturate on the CPU at hand, which are emulated. Without
    `fused` no nodes are merged into one.
    """
    if detect_isa() in SATURATING:
        model = emulated(onnx_bytes, fused=fused)
        if any(seen.risky_pairs for seen in model.saturation.values()):
            return model.run_exactly
    options = session_options()
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = load_session(onnx_bytes, options)

    def run(feeds: Feeds) -> list[Array]:
        outputs: list[Array] = session.run(None, feeds)
        return outputs

    return run


def _optimized(onnx_bytes: bytes, *, fused: bool) -> onnx.ModelProto:
    """The graph with ONNX Runtime's fusions, in the standard layout: EXTENDED leaves out layouts of one CPU alone.

    Without `fused` with constants folded, of which a weight may be one that is turned around first.
    """
    levels = ort.GraphOptimizationLevel
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options = session_options()
        options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED if fused else levels.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        load_session(onnx_bytes, options)
        return onnx.load(str(path))


def _matrices(op_type: str, weights: Array, attributes: Mapping[str, Any]) -> list[NDArray[np.int8]]:
    """The weights as matrices (outputs, depth) in the order of the depth that the kernels add in."""
    if op_type == "QLinearConv":
        return [np.moveaxis(weights, 1, -1).reshape(len(weights), -1)]
    if op_type == "DynamicQuantizeLSTM":
        return [np.ascontiguousarray(matrix.T) for matrix in weights]
    if op_type == "QGemm" and attributes.get("transB", 0):
        return [weights]
    return [np.ascontiguousarray(matrix.T) for matrix in weights.reshape(-1, *weights.shape[-2:])]


def _nodes(step: _Segment | onnx.NodeProto) -> list[onnx.NodeProto]:
    return step.nodes if isinstance(step, _Segment) else [step]


def _offer(steps: list[_Segment | onnx.NodeProto], source: int, name: str) -> None:
    """Makes the segment that computes `name` give it out."""
    if source < 0:
        return
    step = steps[source]
    if isinstance(step, _Segment) and name not in step.outputs:
        step.outputs.append(name)
