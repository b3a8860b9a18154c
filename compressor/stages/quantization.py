"""Post-training quantization: weights and activations of the exported ONNX graph as 8-bit integers.

Krishnamoorthi 2018, arXiv:1806.08342 (per-channel weights, per-tensor activations); Jacob et al. 2018,
arXiv:1712.05877. Which form pays is a matter of the operator: convolutions need static ranges (dynamic ones run 4.5
times slower than float in ONNX Runtime), LSTMs have a dynamic kernel alone, GRUs none.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import onnx
from torch import nn

from compressor.affine import Asymmetric, PerChannel, Scheme, Symmetric
from compressor.export import export_onnx
from compressor.quantization.calibration import MinMax, Percentile, observe_tensors
from compressor.quantization.compact_graph import (
    FLOAT_KERNELS,
    INTEGER_KERNELS,
    compact_graph,
    kernels,
    optimized_nodes,
    serialize,
)
from compressor.quantization.policy import HEAVY, ByFamily, Dynamic, Placement, Static, followers, placement_of
from compressor.quantization.prepare_graph import clean_graph, is_quantized
from compressor.quantization.quantize_graph import (
    Numbers,
    place_dynamic,
    place_static,
    place_weight_only,
    sqnr_db,
    tensors_to_observe,
)
from compressor.runtime import OnnxModule, feeds_of, open_session
from compressor.stage import Context, Effect, StageError
from compressor.target import Isa
from compressor.workload import Workload, first_batches

# Below this the noise is about as large as the outputs; int8 models that work have 15 dB and more.
_SQNR_FLOOR_DB = 5.0
# Batches of calibration data on which the quantized outputs are compared with the float ones.
_COMPARED_BATCHES = 8


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """The model as an ONNX graph of 8-bit integers that ONNX Runtime runs with its integer kernels.

    `skip` holds globs over node names and module paths (`layer1.0.conv1`, `layer3.*`) that stay in float. On x86 CPUs
    without VNNI weights get 7 bits, because pairs of 8-bit products saturate there.
    """

    effect: ClassVar[Effect] = Effect.ENCODING
    weights: Symmetric | Asymmetric = field(default_factory=Symmetric)
    activations: Symmetric | Asymmetric = field(default_factory=Asymmetric)
    calibration: MinMax | Percentile = field(default_factory=MinMax)
    form: ByFamily | Static | Dynamic = field(default_factory=ByFamily)
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, scheme in (("weights", self.weights), ("activations", self.activations)):
            if scheme.bits != 8:
                raise ValueError(
                    f"{name} can have 8 bits, for which ONNX Runtime has fast kernels; got bits={scheme.bits}. "
                    f"Use {type(scheme).__name__}(bits=8)"
                )
        if isinstance(self.weights, Asymmetric) and isinstance(self.weights.granularity, PerChannel):
            raise ValueError(
                "per-channel weights must be Symmetric, because ONNX Runtime's kernels take one zero point a tensor; "
                "got Asymmetric(granularity=PerChannel()). Use Symmetric(), or Asymmetric(granularity=PerTensor())"
            )
        # Symmetric's own default is per channel, which means nothing for activations: it is read as per tensor.
        if isinstance(self.activations, Asymmetric) and isinstance(self.activations.granularity, PerChannel):
            raise ValueError(
                "activations have one range a tensor, got granularity=PerChannel(); use Asymmetric() or Symmetric()"
            )

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        """An OnnxModule of the integer graph. Raises StageError where nothing can be quantized or the model breaks."""
        exported = export_onnx(model, workload).onnx_bytes
        if is_quantized(onnx.load_from_string(exported)):
            raise StageError(
                "the model is quantized already: rounding rounded numbers only loses accuracy. Quantize once, as the "
                "last stage"
            )
        graph = clean_graph(exported)
        placement = self._place(graph)
        numbers = Numbers(
            weights=self._weights_for(context.target.isa),
            activations=self.activations,
            signed_activations=context.target.signed_activations,
        )
        details: dict[str, Any] = {}
        quantized = graph
        if placement.static:
            static = {*placement.static, *followers(graph, set(placement.static))}
            ranges, details["calibration"] = self._calibrate(graph, static, workload)
            quantized = place_static(quantized, static, ranges, numbers)
        if placement.dynamic:
            quantized = place_dynamic(quantized, set(placement.dynamic), numbers.weights)
        if placement.weight_only:
            quantized = place_weight_only(quantized, set(placement.weight_only), numbers.weights)
        plain = serialize(quantized)
        onnx_bytes = _compacted(plain, quantized)
        details |= {
            "form": {
                "static": len(placement.static),
                "dynamic": len(placement.dynamic),
                "weight_only": len(placement.weight_only),
                "activations": "int8" if numbers.signed_activations else "uint8",
                "weight_bits": numbers.weights.bits,
            },
            **_coverage(plain, graph, placement),
        }
        if numbers.weights.bits == 7:
            details["note"] = (
                f"weights have 7 bits: {context.target.isa.value} sums pairs of 8-bit products in 16 bits and saturates"
            )
        details["sqnr_db"] = _verified_sqnr(exported, onnx_bytes, workload)
        context.details.update(details)
        return OnnxModule(onnx_bytes)

    def _weights_for(self, isa: Isa) -> Scheme:
        return replace(self.weights, bits=7) if isa in {Isa.X86_AVX512, Isa.X86_AVX2} else self.weights

    def _place(self, graph: onnx.ModelProto) -> Placement:
        placement = placement_of(graph, self.form, self.skip)
        if not (placement.static or placement.dynamic or placement.weight_only):
            reasons = "; ".join(
                f"{count} nodes: {reason}" for reason, count in Counter(placement.left.values()).items()
            )
            raise StageError(f"nothing to quantize: {reasons or 'the graph has none of ' + ', '.join(HEAVY)}")
        return placement

    def _calibrate(
        self, graph: onnx.ModelProto, nodes: set[str], workload: Workload
    ) -> tuple[dict[str, tuple[float, float]], dict[str, Any]]:
        tensors, same = tensors_to_observe(graph, nodes)
        observed, samples = observe_tensors(
            graph, tensors, workload.calibration, binned=isinstance(self.calibration, Percentile)
        )
        ranges = {name: self.calibration.range_of(seen) for name, seen in observed.items() if seen.low <= seen.high}
        for name, source in reversed(same.items()):
            if source in ranges:
                ranges[name] = ranges[source]
        return ranges, {"method": repr(self.calibration), "samples": samples, "tensors": len(tensors)}


def _compacted(plain: bytes, quantized: onnx.ModelProto) -> bytes:
    compact = serialize(compact_graph(quantized))
    # ONNX Runtime matches patterns: a smaller file that fuses differently would be a worse one.
    return compact if kernels(compact) == kernels(plain) else plain


def _coverage(plain: bytes, graph: onnx.ModelProto, placement: Placement) -> dict[str, Any]:
    """What ONNX Runtime runs on integers, and what it does not and why, under the names of the float `graph`."""
    nodes = optimized_nodes(plain)
    integer = Counter(node.op_type for node in nodes if node.op_type in INTEGER_KERNELS)
    left = []
    for node in nodes:
        if node.op_type in FLOAT_KERNELS:
            name = _original(node.name, graph)
            reason = placement.left.get(name, "ONNX Runtime did not fuse it into an int8 kernel")
            left.append({"node": name, "op": node.op_type, "reason": reason})
    if not integer and not placement.weight_only:
        raise StageError(
            f"ONNX Runtime runs none of {len(placement.static) + len(placement.dynamic)} prepared nodes on integers; "
            "leave this stage out for this model"
        )
    return {
        "quantized": sum(integer.values()) + len(placement.weight_only),
        "integer_kernels": dict(sorted(integer.items())),
        "left_in_float": left,
    }


def _original(fused: str, graph: onnx.ModelProto) -> str:
    """The name in `graph` of what ONNX Runtime calls `fused`."""
    # It names a fused node after its activation, a convolution in another layout after its output, and adds suffixes.
    producers = {output: node for node in graph.graph.node for output in node.output}
    for node in sorted(graph.graph.node, key=lambda node: -len(node.name)):
        if fused in {node.name, f"{node.output[0]}_nchwc"} or fused.startswith(f"{node.name}/"):
            if node.op_type in HEAVY:
                return str(node.name)
            source = producers.get(node.input[0]) if node.input else None
            return str(source.name) if source is not None else fused
    return fused


def _verified_sqnr(reference: bytes, quantized: bytes, workload: Workload) -> float:
    before, after = open_session(reference), open_session(quantized)
    pairs = []
    for inputs, _ in first_batches(workload.calibration, _COMPARED_BATCHES):
        pairs.append((before.run(None, feeds_of(before, inputs))[0], after.run(None, feeds_of(after, inputs))[0]))
        _check_single_sample(after, feeds_of(after, inputs))
    expected, got = (np.concatenate([pair[side].reshape(-1) for pair in pairs]) for side in (0, 1))
    value = sqnr_db(expected, got) if np.isfinite(got).all() else float("-inf")
    if not value >= _SQNR_FLOOR_DB:
        raise StageError(
            f"quantization broke the model: its outputs keep {value:.1f} dB of signal to noise, at least "
            f"{_SQNR_FLOOR_DB:g} dB are needed; try calibration=Percentile(), or leave sensitive layers out with skip"
        )
    # JSON has no infinity: 200 dB is beyond what float32 can tell apart.
    return round(min(value, 200.0), 2)


def _check_single_sample(session: Any, feeds: dict[str, Any]) -> None:
    output = session.run(None, {name: value[:1] for name, value in feeds.items()})[0]
    if not np.isfinite(output).all():
        raise StageError(
            "the quantized model gives NaN or infinite outputs for a single sample; leave layers out with skip"
        )
