"""What every layer's rounding does to the network's output, by itself: its signal to quantization noise.

The noise powers of layers that are rounded one at a time add up to about that of all of them together, as long as each
is small (Lin et al. 2016, arXiv:1511.06393, section 3.2: equation 8 turns the sum into a budget of bits). `predicted_db`
is that sum; the report puts it beside what was measured.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from tqdm import tqdm

from compressor.affine import Scheme
from compressor.quantization.compact_graph import serialize
from compressor.quantization.post_training import Prepared
from compressor.quantization.quantize_graph import sqnr_db
from compressor.quantization.weight_grids import nearest_grids, weight_positions
from compressor.runtime import feeds_of, open_session
from compressor.stage import Context
from compressor.workload import Workload, batches_of

# Beyond what float32 can tell apart; JSON has no infinity.
_MOST_DB = 200.0


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What the output keeps, in decibels, when `node` alone has weights of `bits` bits and quantized activations.

    `size_bytes` is what its weights take at that width, packed, without scales.
    """

    node: str
    bits: int
    sqnr_db: float
    size_bytes: int

    @property
    def noise(self) -> float:
        """Its noise power as a fraction of the output's power."""
        return float(10 ** (-self.sqnr_db / 10))


def sensitivities(
    prepared: Prepared, bits: Sequence[int], workload: Workload, context: Context, *, samples: int
) -> dict[str, tuple[Sensitivity, ...]]:
    """{static node with constant weights: one entry for every width of `bits`}, on `samples` calibration samples."""
    constants = {tensor.name: tensor for tensor in prepared.graph.graph.initializer}
    nodes = {
        node.name: node
        for node in prepared.graph.graph.node
        if node.name in prepared.placement.static
        and any(node.input[position] in constants for position in weight_positions(node))
    }
    batches = _first(workload.calibration, samples)
    reference = _outputs(serialize(prepared.graph), batches)
    found: dict[str, tuple[Sensitivity, ...]] = {}
    with tqdm(
        total=len(nodes) * len(bits), desc="sensitivity", unit="layer", leave=False, disable=not context.progress
    ) as bar:
        for name, node in nodes.items():
            entries = []
            for width in bits:
                scheme = scheme_of_width(prepared.scheme, width)
                alone = prepared.only(name, nearest_grids(prepared.graph, {name: scheme}))
                outputs = _outputs(serialize(alone), batches)
                entries.append(
                    Sensitivity(
                        node=name,
                        bits=width,
                        sqnr_db=round(min(sqnr_db(reference, outputs), _MOST_DB), 2),
                        size_bytes=math.ceil(_weights(node, constants) * width / 8),
                    )
                )
                bar.update()
            found[name] = tuple(entries)
    return found


def scheme_of_width(scheme: Scheme, bits: int) -> Scheme:
    """`scheme` with another number of bits."""
    return replace(scheme, bits=bits)


def predicted_db(chosen: Iterable[Sensitivity]) -> float:
    """The signal to noise of all layers together, in decibels, where the noise of each adds to the others'."""
    noise = sum(entry.noise for entry in chosen)
    return _MOST_DB if noise <= 0 else min(_MOST_DB, -10 * math.log10(noise))


def sensitivity_rows(found: Mapping[str, Sequence[Sensitivity]], chosen: Mapping[str, int]) -> list[dict[str, Any]]:
    """What the report shows of every layer: {"node", "bits" (chosen), "sqnr_db" by width}."""
    return [
        {
            "node": name,
            "bits": chosen.get(name),
            "sqnr_db": {str(entry.bits): entry.sqnr_db for entry in entries},
            "size_bytes": {str(entry.bits): entry.size_bytes for entry in entries},
        }
        for name, entries in found.items()
    ]


def _weights(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> int:
    tensors = [
        constants[node.input[position]] for position in weight_positions(node) if node.input[position] in constants
    ]
    return sum(math.prod(tensor.dims) for tensor in tensors)


def _first(data: Iterable[Any], samples: int) -> list[Any]:
    taken, count = [], 0
    for inputs, targets in batches_of(data):
        taken.append(inputs)
        count += len(targets)
        if count >= samples:
            break
    return taken


def _outputs(onnx_bytes: bytes, batches: Sequence[Any]) -> npt.NDArray[Any]:
    session = open_session(onnx_bytes)
    return np.concatenate([session.run(None, feeds_of(session, inputs))[0].reshape(-1) for inputs in batches])
