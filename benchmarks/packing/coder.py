"""The packed size of ResNet-56 in float, sparse, int8 and int4 beside order-0 entropy and general compressors.

    python -m benchmarks.packing.coder

Every weight's entropy of order 0 is that of its symbols alone, as if their tables cost nothing: integers as they are,
of floats the exponents, with sign and fraction as they are. The packed weights are the whole packed file without its
graph, headers, tables and all else included. Decoding is timed in CPU seconds of one thread, in turns with the others.
"""

import argparse
import importlib.util
import io
import lzma
import statistics
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from benchmarks.packing.networks import FILES, file_of
from benchmarks.stored import RESULTS
from compressor.files.graphs import parse
from compressor.machine import environment
from compressor.packing import reader
from compressor.packing.classes import entropy_bits
from compressor.packing.forms import PlaneOf, best_form
from compressor.packing.layouts import inner_shapes
from compressor.packing.wire import weights_in
from compressor.packing.writer import packed
from compressor.storage import write_json
from compressor.target import Target

RESULT = RESULTS / "packing.json"
_ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench/packing/files"))
    arguments = parser.parse_args()
    rows = {}
    for name in FILES:
        rows[name] = one_file(file_of(name, arguments.out))
        print_row(name, rows[name])
    write_json(RESULT, {"benchmark": "packing", "environment": environment(Target()), "files": rows})
    print(f"stored in {RESULT}")


def one_file(data: bytes) -> dict[str, Any]:
    """What a file is by every coder, in bytes, and how fast it is decoded."""
    started = time.process_time()
    made = b"".join(packed(data))
    seconds = time.process_time() - started
    graph = graph_bytes(made)
    weights, entropy = order_0(data)
    others = {
        "zlib -9": zlib.compress(data, 9),
        "lzma -9e": lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
        "zstd -19": zstandard.compress(data, 19),
    }
    if importlib.util.find_spec("brotli"):
        import brotli

        others["brotli -11"] = brotli.compress(data, quality=11, lgwin=24)
    speeds = decoded(data, made, others)
    return {
        "size_bytes": len(data),
        "weights": weights,
        "packed_bytes": len(made),
        "graph_bytes": graph,
        "packed_weights_bytes": len(made) - graph,
        "order_0_bytes": entropy,
        "of_order_0": (len(made) - graph) / entropy,
        "others": {name: len(found) for name, found in others.items()},
        "of_smallest_other": len(made) / min(map(len, others.values())),
        "pack_cpu_seconds": seconds,
        "decode": speeds | {"weights_per_second": weights / speeds["symbols_seconds"]},
        "unpack_weights_per_second": weights / speeds["packed_seconds"],
    }


def order_0(data: bytes) -> tuple[int, float]:
    """(the number of weights, the bytes of their entropy of order 0, each tensor by itself)."""
    inner = inner_shapes(parse(data))
    count, bits = 0, 0.0
    for number, weight in enumerate(weights_in(data)):
        raw = data[weight.offset : weight.offset + weight.length]
        form = best_form(raw, weight.kind, weight.shape, own=number, inner=inner.get(weight.name, ()))
        count += form.planes[0].symbols.size
        bits += 8 * len(form.values) + sum(map(_plane_bits, form.planes))
    return count, bits / 8


def _plane_bits(plane: PlaneOf) -> float:
    if plane.key is None:
        return 8.0 * plane.symbols.size
    sizes = [rows * columns * places for rows, columns, places in plane.shapes] or [plane.symbols.size]
    # What is one tensor in the file may be many weights; a line of numbers that was cut into rows is one.
    parts = np.split(plane.symbols, np.cumsum(sizes)[:-1])
    return sum(entropy_bits(np.bincount(part, minlength=1)) for part in parts)


def graph_bytes(made: bytes) -> int:
    """The bytes that the graph, which is not weights, takes in a packed file."""
    source = io.BytesIO(made)
    reader.read_header(source)
    total = 0
    while frame := source.read(8):
        cursor = reader.Cursor(source.read(int.from_bytes(frame[:4], "little")))
        cursor.number()
        cursor.number()
        total += cursor.number()
    return total


def decoded(data: bytes, made: bytes, others: dict[str, bytes]) -> dict[str, float]:
    """Median CPU seconds: of the whole packed file, of its symbols alone, and of the others, all in turns."""
    symbols: list[float] = []
    plain = reader.decode

    def timed(*given: Any) -> Any:
        started = time.process_time()
        found = plain(*given)
        symbols[-1] += time.process_time() - started
        return found

    def ours() -> None:
        symbols.append(0.0)
        target = io.BytesIO()
        reader.decode = timed
        try:
            reader.unpack_into(io.BytesIO(made), target)
        finally:
            reader.decode = plain
        assert target.getvalue() == data

    turns: dict[str, Callable[[], Any]] = {
        "packed_seconds": ours,
        "lzma_seconds": lambda: lzma.decompress(others["lzma -9e"]),
        "zstd_seconds": lambda: zstandard.decompress(others["zstd -19"]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(_ROUNDS):
        for name, turn in turns.items():
            started = time.process_time()
            turn()
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(found) for name, found in seconds.items()} | {
        "symbols_seconds": statistics.median(symbols)
    }


def print_row(name: str, row: dict[str, Any]) -> None:
    print(
        f"{name:12s} {row['size_bytes']:>9,} -> {row['packed_bytes']:>9,}; weights {100 * row['of_order_0']:.2f} % of "
        f"order 0, {100 * row['of_smallest_other']:.2f} % of the smallest other {row['others']}; "
        f"{row['decode']['weights_per_second'] / 1e6:.1f} M symbols a second, "
        f"{row['unpack_weights_per_second'] / 1e6:.1f} M with all else; packed in {row['pack_cpu_seconds']:.1f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
