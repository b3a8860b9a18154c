"""The check of a quantized file: which operators run on integers, and what its outputs keep of the float ones.

What ONNX Runtime runs on integers, what it does not, and why, is seen in the graph that it makes on this machine.
"""

import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from compressor.batches import Inputs
from compressor.checks import one_of
from compressor.errors import StageError
from compressor.files.graphs import all_nodes, producers, readers
from compressor.files.operators import Arithmetic, Fact, Operator, facts_of, operator_of
from compressor.measuring.fidelity import fidelity
from compressor.notes.quantization import Coverage, FloatOperator, OutputNoise
from compressor.quantization.file.compact_graph import optimized_nodes
from compressor.quantization.placement.policy import Placement
from compressor.runtime import feeds_of, open_session
from compressor.scoring.decibels import MOST_DB
from compressor.workload import Workload, first_batches, resize_batch

# Below this the noise is about as large as the outputs; int8 models that work have 15 dB and more.
_SQNR_FLOOR_DB = 5.0
# The noise is half of what the channel says.
_CHANNEL_FLOOR_DB = 3.0
_FULL_BITS = 8
# Batches of calibration data on which the quantized outputs are compared with the float ones.
_COMPARED_BATCHES = 8


def coverage(
    plain: bytes,
    graph: onnx.ModelProto,
    placement: Placement,
    *,
    activation_bits: int = 8,
    signed_activations: bool = False,
) -> Coverage:
    """What of the integer file `plain` ONNX Runtime runs on integers, under the names of the float `graph`.

    `signed_activations` on a machine that is no Arm gives what ONNX Runtime fuses here when it lets int8 activations
    through as on Arm, and nothing has run there. Raises StageError where nothing is gained.
    """
    elsewhere = _seen_on() if signed_activations else None
    nodes = optimized_nodes(plain, signed_activations=signed_activations)
    rows = {node.op_type: operator_of(node.op_type) for node in nodes}
    integer = Counter(node.op_type for node in nodes if rows[node.op_type].multiplies_integers)
    stored = len(placement.weight_only) + len(placement.float16)
    left = []
    names = OriginalNames(graph)
    for node in nodes:
        if rows[node.op_type].multiplies_floats:
            name = names.of(node.name)
            reason = placement.left.get(name) or _unfused(name, placement, activation_bits)
            left.append(FloatOperator(node=name, op=node.op_type, reason=reason))
    left += _float_tables(graph, placement)
    # Rows of integers are looked up, whichever kernel does it.
    tables = any(node.op_type == "Gather" and node.name in placement.dynamic for node in graph.graph.node)
    # 16-bit activations show an accuracy; nobody expects them to be fast.
    if not (integer or stored or tables) and activation_bits == 8:
        seen = f", seen on {elsewhere}" if elsewhere else ""
        raise StageError(
            f"ONNX Runtime runs none of {len(placement.static) + len(placement.dynamic)} prepared nodes on "
            f"integers{seen}; leave this stage out for this model, or store its weights in fewer bytes with "
            "form=WeightOnly() or form=Float16()"
        )
    return Coverage(
        quantized=sum(integer.values()) + stored - integer["MatMulNBits"],
        integer_kernels=dict(sorted(integer.items())),
        integer_followers=dict(
            sorted(Counter(node.op_type for node in nodes if _follows_on_integers(rows[node.op_type])).items())
        ),
        left_in_float=tuple(left),
        float_islands=tuple(_islands(nodes, names)),
        conversions=sum(_converts(node) for node in nodes),
        kernels_seen_on=elsewhere,
    )


def _follows_on_integers(row: Operator) -> bool:
    """Whether it is an operator of the optimized graph on 8-bit tensors that multiplies no weights."""
    return row.family is None and row.arithmetic is Arithmetic.STATIC


def _converts(node: onnx.NodeProto) -> bool:
    return Fact.CONVERTS in facts_of(node.op_type)


def _seen_on() -> str | None:
    """In words, where kernels for signed activations were seen; None on an Arm machine, whose kernels they are."""
    machine = platform.machine()
    if machine.lower() in {"arm64", "aarch64"}:
        return None
    return f"{machine}, which let int8 activations through as ONNX Runtime does on Arm; the file has not run on Arm"


def _float_tables(graph: onnx.ModelProto, placement: Placement) -> list[FloatOperator]:
    """Embeddings whose tables stay as they are; a lookup computes nothing, so that no kernel's name tells."""
    stored = {*placement.weight_only, *placement.float16}
    return [
        FloatOperator(node=node.name, op=node.op_type, reason=placement.left[node.name])
        for node in graph.graph.node
        if node.op_type == "Gather" and node.name in placement.left and node.name not in stored
    ]


def _unfused(name: str, placement: Placement, activation_bits: int) -> str:
    if name in placement.static and activation_bits == 16:
        return "ONNX Runtime has no integer kernels for 16-bit activations: it rounds to them and computes floats"
    return "ONNX Runtime did not fuse it into an int8 kernel"


def _islands(nodes: Sequence[onnx.NodeProto], names: "OriginalNames") -> list[FloatOperator]:
    """Operators without weights between a DequantizeLinear and a QuantizeLinear, in the order of the graph."""
    made, read = producers(nodes), readers(nodes)
    found = []
    for node in nodes:
        row = operator_of(node.op_type)
        if _converts(node) or row.multiplies_floats or row.multiplies_integers:
            continue
        sources = [made[name].op_type for name in node.input if name in made]
        after = [reader.op_type for name in node.output for reader in read[name]]
        if "DequantizeLinear" in sources and "QuantizeLinear" in after:
            name = names.of(node.name, weighted=False)
            found.append(FloatOperator(node=name, op=node.op_type, reason=_why_island(node, made)))
    return found


def _why_island(node: onnx.NodeProto, made: Mapping[str, onnx.NodeProto]) -> str:
    row = operator_of(node.op_type)
    if Fact.FOLLOWS not in row.facts:
        return f"ONNX Runtime has no 8-bit kernel for {node.op_type}"
    if row.bounds is not None:
        return "its bounds are not where the integers of its output end, so that saturation cannot stand for it"
    floats = [made[name] for name in node.input if name in made and not _converts(made[name])]
    if floats:
        return f"its input from {floats[0].name or floats[0].op_type} ({floats[0].op_type}) is float"
    return "ONNX Runtime did not fuse it"


class OriginalNames:
    """The names in `graph` of what ONNX Runtime runs under names of its own."""

    def __init__(self, graph: onnx.ModelProto) -> None:
        nodes = [*all_nodes(graph.graph)]
        self._made = producers(nodes)
        self._named: dict[str, onnx.NodeProto] = {}
        self._relaid: dict[str, onnx.NodeProto] = {}
        for node in sorted(nodes, key=lambda node: -len(node.name)):
            self._named.setdefault(node.name, node)
            self._relaid.setdefault(f"{node.output[0]}_nchwc", node)

    def of(self, fused: str, *, weighted: bool = True) -> str:
        """The name of what is called `fused`, an operator with weights or not; `fused` where it does not tell."""
        # It names a fused node after its activation or puts a word before, a convolution in another layout after its
        # output, and adds suffixes: the longest name that fits is the one.
        heads = [head for name in (fused, fused.removeprefix("fused ")) for head in _heads(name)]
        found = [self._named[head] for head in heads if head in self._named]
        found += [self._relaid[fused]] if fused in self._relaid else []
        node = max(found, key=lambda node: len(node.name), default=None)
        if node is None:
            return fused
        if operator_of(node.op_type).heavy or not weighted:
            return str(node.name)
        source = self._made.get(node.input[0]) if node.input else None
        return str(source.name) if source is not None else fused


def _heads(name: str) -> list[str]:
    """What of `name` may be a name itself: all of it, and all that ends before a slash or the number of a token."""
    numbered = re.sub(r"_token_\d+$", "", name)
    return [name, numbered, *(name[:place] for place, letter in enumerate(name) if letter == "/")]


def verified_outputs(
    reference: bytes, quantized: bytes, workload: Workload, *, calibrated: bool = True, bits: int = 8
) -> OutputNoise:
    """What every output of `quantized` keeps of the file `reference` on calibration data.

    Raises StageError where one keeps less than 5 dB of its signal around its mean, or one of its channels less than 3,
    and where outputs of a single sample are not finite. Whether ranges were `calibrated`, and of how many `bits` the
    weights are, says what may help then.
    """
    batches = [inputs for inputs, _ in first_batches(workload.calibration, _COMPARED_BATCHES)]
    _check_single_samples(reference, quantized, batches)
    kept = fidelity(reference, quantized, batches)
    broken = [
        each
        for each in kept
        if (each.db is not None and each.db < _SQNR_FLOOR_DB)
        or (each.channel_db is not None and each.channel_db < _CHANNEL_FLOOR_DB)
    ]
    if broken:
        way_out = one_of(
            {
                "use weights of more bits": bits < _FULL_BITS,
                "calibrate by another method, such as Percentile() or MSE()": calibrated,
                "leave sensitive layers in float with skip": True,
            }
        )
        raise StageError(
            f"quantization broke the model: {'; '.join(each.says() for each in broken)} of its signal around the "
            f"mean; at least {_SQNR_FLOOR_DB:g} dB of an output, and {_CHANNEL_FLOOR_DB:g} of a channel, are needed; "
            f"{way_out}"
        )
    decided = [each.db for each in kept if each.db is not None]
    return OutputNoise(sqnr_db=min(decided, default=MOST_DB), outputs=kept)


def _check_single_samples(reference: bytes, quantized: bytes, batches: Sequence[Inputs]) -> None:
    before, after = open_session(reference), open_session(quantized)
    for inputs in batches:
        feeds = feeds_of(after, resize_batch(inputs, 1))
        for wanted, found in zip(before.run(None, feeds), after.run(None, feeds), strict=True):
            if wanted.dtype.kind == "f" and not np.isfinite(found).all() and np.isfinite(wanted).all():
                raise StageError(
                    "the quantized model gives NaN or infinite outputs for a single sample; leave the layers before "
                    "them in float with skip"
                )
