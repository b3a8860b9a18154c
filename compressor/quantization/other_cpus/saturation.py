"""Products of 8-bit integers as x86 CPUs without VNNI add them up: in pairs, each saturated at 16 bits.

MLAS, ONNX Runtime's kernel library, multiplies unsigned activations by signed weights with `vpmaddubsw` on AVX2 and on
AVX-512 without VNNI: two products of neighbours along the depth are added with saturation to [-32768, 32767], and only
then widened to 32 bits (its files QgemmU8S8KernelAvx2.S, ConvSymKernelAvx2.S and their AVX-512 twins). The depth of a
convolution runs over the kernel's positions, then over the input channels, and is padded with zeros. Depthwise
convolutions, unsigned weights, and every kernel of VNNI and of Arm widen first and do not saturate.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.target import Isa

# The classes whose kernels add pairs of products in 16 bits. Both do it alike, so one emulation holds for both.
SATURATING = (Isa.X86_AVX512, Isa.X86_AVX2)
# The sum of two products is exact up to here.
_LOWEST, _HIGHEST = -(2**15), 2**15 - 1
_LARGEST_ACTIVATION = 255
# Integers up to here are exact in float32, whatever the order in which a product adds them up.
_FLOAT32_EXACT = 2**24
# Products of pairs that are held at a time: 16 MB of int32.
_CHUNK = 4_000_000


@dataclass(frozen=True, kw_only=True)
class SaturatedProduct:
    """Sums of products as such a CPU computes them: int32 (outputs, columns), and how many saturated on the way.

    `pairs` counts pairs of products that were cut off, `sums` the sums that hold at least one such pair.
    """

    values: NDArray[np.int32]
    pairs: int
    sums: int


def saturating_pairs(weights: NDArray[np.int8]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(outputs, pairs): the pairs of neighbouring weights of (outputs, depth) that some activations make saturate.

    A pair is safe where its positive weights add up to at most 128, and its negative ones: 255 * 128 < 32768. Weights
    of 7 bits, [-64, 63], are all safe. Pair p holds the weights 2p and 2p + 1; both results are in order of outputs.
    """
    positive, negative = _signed_parts(_pairs_of(weights))
    risky = (_LARGEST_ACTIVATION * positive.sum(2) > _HIGHEST) | (_LARGEST_ACTIVATION * negative.sum(2) < _LOWEST)
    outputs, pairs = np.nonzero(risky)
    return outputs, pairs


def exact_product(weights: NDArray[np.int8], columns: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Weights (outputs, depth) times columns (depth, count), int32 (outputs, count), without any saturation."""
    bound = _LARGEST_ACTIVATION * int(np.abs(weights.astype(np.int64)).sum(axis=1).max(initial=0))
    kind = np.float32 if bound < _FLOAT32_EXACT else np.float64
    product: NDArray[np.int32] = (weights.astype(kind) @ columns.astype(kind)).astype(np.int32)
    return product


def saturated_product(weights: NDArray[np.int8], columns: NDArray[np.uint8]) -> SaturatedProduct:
    """Weights (outputs, depth) times columns (depth, count) with every pair of products saturated at 16 bits."""
    values = exact_product(weights, columns)
    outputs, pairs = saturating_pairs(weights)
    activations = np.zeros((2 * ((len(columns) + 1) // 2), columns.shape[1]), np.uint8)
    activations[: len(columns)] = columns
    outputs, pairs, chosen = _reached(weights, activations, outputs, pairs)
    cut, touched = 0, 0
    held = max(1, _CHUNK // max(1, columns.shape[1]))
    for start, stop in _chunks(outputs, held):
        rows = pairs[start:stop]
        sums = activations[2 * rows].astype(np.int32) * chosen[start:stop, :1]
        sums += activations[2 * rows + 1].astype(np.int32) * chosen[start:stop, 1:]
        excess = sums - sums.clip(_LOWEST, _HIGHEST)
        cut += int(np.count_nonzero(excess))
        affected, firsts = np.unique(outputs[start:stop], return_index=True)
        values[affected] -= np.add.reduceat(excess, firsts, axis=0)
        touched += int(np.logical_or.reduceat(excess != 0, firsts, axis=0).sum())
    return SaturatedProduct(values=values, pairs=cut, sums=touched)


def _reached(
    weights: NDArray[np.int8], activations: NDArray[np.uint8], outputs: NDArray[np.intp], pairs: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]]:
    """The risky pairs that the largest of these activations could saturate, and their weights, (count, 2)."""
    chosen = _pairs_of(weights)[outputs, pairs].astype(np.int32)
    peaks = activations.max(axis=1, initial=0).astype(np.int32).reshape(-1, 2)[pairs]
    positive, negative = _signed_parts(chosen)
    possible = ((peaks * positive).sum(1) > _HIGHEST) | ((peaks * negative).sum(1) < _LOWEST)
    return outputs[possible], pairs[possible], chosen[possible]


def _pairs_of(weights: NDArray[np.int8]) -> NDArray[np.int8]:
    padded = np.zeros((len(weights), 2 * ((weights.shape[1] + 1) // 2)), np.int8)
    padded[:, : weights.shape[1]] = weights
    return padded.reshape(len(weights), -1, 2)


def _signed_parts(weights: NDArray[np.int8] | NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    wide = weights.astype(np.int32)
    return wide.clip(min=0), wide.clip(max=0)


def _chunks(outputs: NDArray[np.intp], size: int) -> list[tuple[int, int]]:
    """Ranges of about `size` entries that do not part the entries of one output: its sums are counted once."""
    ranges = []
    start = 0
    while start < len(outputs):
        stop = min(start + size, len(outputs))
        if stop < len(outputs):
            boundary = int(np.searchsorted(outputs, outputs[stop], side="left"))
            stop = boundary if boundary > start else int(np.searchsorted(outputs, outputs[start], side="right"))
        ranges.append((start, stop))
        start = stop
    return ranges
