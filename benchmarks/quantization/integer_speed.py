"""Where the microseconds of ResNet-20 and ResNet-56 go in float and in 8 bits, and what bounds the speed-up.

python -m benchmarks.quantization.integer_speed [--networks resnet20 resnet56] [--seconds 4]

One thread, batch 1. The profile of ONNX Runtime divides each file's time among kinds of nodes; what profiling itself
adds to every node is taken off, so that the parts add up to the time of a call without it. Then the same network in
other forms, each timed interleaved with ours for `seconds`: what they gain or lose says what the speed-up hangs on.
Prints the tables, stores results/integer-speed.json. Takes two minutes.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.data.cifar import WORKLOADS
from benchmarks.documents.cells import spread
from benchmarks.peers.usual_tools import quantize_static_defaults
from benchmarks.stored import RESULTS
from compressor.files.export import export_onnx
from compressor.machine import environment
from compressor.measuring.timing import time_interleaved
from compressor.quantization.file.channel_alignment import aligned
from compressor.quantization.file.compact_graph import serialize
from compressor.quantization.post_training import Prepared, prepare
from compressor.runtime import feeds_of, load_session, open_session, session_options
from compressor.stage import Context
from compressor.stages.quantization import Quantize
from compressor.storage import write_json
from compressor.target import Isa, Target
from compressor.workload import Workload, resize_batch

RESULT = RESULTS / "integer-speed.json"
CONTEXT = Context(target=Target(isa=Isa.X86_VNNI), progress=False)
CONVOLUTIONS = frozenset({"Conv", "FusedConv", "QLinearConv"})
LAYOUT = frozenset({"QuantizeLinear", "DequantizeLinear", "Transpose", "ReorderInput", "ReorderOutput", "Pad"})
SUMS = frozenset({"Add", "QLinearAdd"})
RUNS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=[*WORKLOADS], default=["resnet20", "resnet56"])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    networks = {name: measured(WORKLOADS[name](), arguments.seconds) for name in arguments.networks}
    result = {"environment": environment(CONTEXT.target), "networks": networks}
    print("\n".join(section(result)))
    write_json(arguments.out, result)


def measured(workload: Workload, seconds: float) -> dict[str, Any]:
    """The parts of both files, the speed-up, its bound, and the other forms over ours."""
    exported = export_onnx(workload.model, workload).onnx_bytes
    prepared = prepare(exported, Quantize(), workload, CONTEXT)
    ours = prepared.shipped()
    inputs = resize_batch(workload.example_inputs, 1)

    def over(candidate: bytes, reference: bytes) -> dict[str, float]:
        return asdict(time_interleaved(candidate, reference, inputs, seconds=seconds).speedup)

    parts = {"float": divided(exported, inputs), "int8": divided(ours, inputs)}
    speedup = over(ours, exported)
    products = sum(part["us"] for part in parts["int8"] if part["macs"])
    share = products / sum(part["us"] for part in parts["int8"])
    return {
        "parts": parts,
        "speedup": speedup,
        "over_defaults": over(ours, quantize_static_defaults(exported, workload)),
        # What the interleaved ratio would be if nothing but the convolutions took time.
        "bound": speedup["value"] / share,
        "forms": [{"form": name, "over_ours": over(make(prepared), ours)} for name, make in FORMS.items()],
    }


def divided(onnx_bytes: bytes, inputs: Any) -> list[dict[str, Any]]:
    """The kinds of nodes of a file with their count, microseconds a call and multiply-accumulates."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        session = load_session(onnx_bytes, options)
        feeds = feeds_of(session, inputs)
        for _ in range(RUNS):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        graph = onnx.load(options.optimized_model_filepath).graph
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    weights = {
        node.name: sizes.get(node.input[3 if node.op_type == "QLinearConv" else 1], [])
        for node in graph.node
        if len(node.input) > 3 or node.op_type in CONVOLUTIONS
    }
    times: dict[str, list[float]] = {}
    seen: dict[str, tuple[str, str, int]] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        told = event["args"]
        times.setdefault(told["node_index"], []).append(event["dur"])
        operator, name = told["op_name"], event["name"].removesuffix("_kernel_time")
        shape = next(iter(told["output_type_shape"][0].values()))
        macs = 0
        if operator in CONVOLUTIONS:
            # Both layouts have a side of the map third; of four dimensions one counts channels, which weights count.
            macs = int(np.prod(shape)) * int(np.prod(weights[name][1:]))
        seen[told["node_index"]] = (kind(operator, shape, weights.get(name, [])), operator, macs)
    typical = {index: float(np.mean(np.sort(values)[: len(values) // 2])) for index, values in times.items()}
    # A timed event costs about as much for every node; what is left belongs to the nodes.
    surplus = max(0.0, sum(typical.values()) - call_us(onnx_bytes, inputs)) / len(typical)
    found: dict[str, dict[str, Any]] = {}
    for index, value in typical.items():
        name, _, macs = seen[index]
        part = found.setdefault(name, {"kind": name, "nodes": 0, "us": 0.0, "macs": 0})
        part["nodes"] += 1
        part["us"] += max(0.0, value - surplus)
        part["macs"] += macs
    return sorted(found.values(), key=lambda part: KINDS.index(part["kind"].split(",")[0]))


KINDS = ["first convolution", "3x3", "1x1", "residual sums", "layout and conversions", "pooling and head"]


def kind(operator: str, shape: list[int], weight: list[int]) -> str:
    """What the tables call a node."""
    if operator in CONVOLUTIONS:
        if weight[1] <= 4:
            return "first convolution"
        return f"{weight[2]}x{weight[3]}, {shape[2]}x{shape[2]} map"
    if operator in SUMS:
        return "residual sums"
    return "layout and conversions" if operator in LAYOUT else "pooling and head"


def call_us(onnx_bytes: bytes, inputs: Any) -> float:
    """Microseconds of a call without a profile: the mean of the faster half, as for the nodes."""
    session = open_session(onnx_bytes)
    feeds = feeds_of(session, inputs)
    times = []
    for _ in range(2 * RUNS):
        start = perf_counter()
        session.run(None, feeds)
        times.append(perf_counter() - start)
    return 1e6 * float(np.mean(np.sort(times[RUNS // 2 :])[: len(times) // 2]))


def unaligned(prepared: Prepared) -> bytes:
    """No channels are added: the three colours are read as they come."""
    return serialize(prepared.place())


def matrix_products(prepared: Prepared) -> bytes:
    """The same weights a step lower with a zero point of -1, which only the kernels for matrix products take."""
    placed = aligned(prepared.place(), prepared.isa)
    constants = {tensor.name: tensor for tensor in placed.graph.initializer}
    sources = {node.output[0]: node for node in placed.graph.node if node.op_type == "DequantizeLinear"}
    for node in placed.graph.node:
        if node.op_type == "Conv":
            values, _, zero_point = (constants[name] for name in sources[node.input[1]].input)
            for tensor in (values, zero_point):
                lower = numpy_helper.to_array(tensor) - np.int8(1)
                tensor.CopyFrom(numpy_helper.from_array(lower.astype(np.int8), tensor.name))
    return serialize(placed)


def without_sums(prepared: Prepared) -> bytes:
    """The graph without its residual sums: another function, the bound of what cheaper sums could bring."""
    graph = onnx.ModelProto()
    graph.CopyFrom(prepared.graph)
    replaced: dict[str, str] = {}
    kept = []
    for node in graph.graph.node:
        node.input[:] = [replaced.get(name, name) for name in node.input]
        if node.op_type == "Add":
            replaced[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    del graph.graph.node[:]
    graph.graph.node.extend(kept)
    return serialize(aligned(prepared.place(graph), prepared.isa))


def float_first(prepared: Prepared) -> bytes:
    """The first convolution computes floats."""
    first = next(node.name for node in prepared.graph.graph.node if node.op_type == "Conv")
    return prepared.without({first: "tried"}).shipped()


FORMS: dict[str, Callable[[Prepared], bytes]] = {
    "three colours, no channel added": unaligned,
    "first convolution in float": float_first,
    "matrix products (AMX where there is one) for every convolution": matrix_products,
    "without residual sums (another function)": without_sums,
}


def section(result: dict[str, Any]) -> list[str]:
    """The tables of the page."""
    networks = result["networks"]
    parts = [
        "## What bounds the speed of integers (`make bench-integer-speed`)",
        "",
        (
            f"{result['environment'].get('cpu')}, one thread, batch 1: microseconds of a call by kind of node, from "
            "ONNX Runtime's profile without its own cost, and billions of multiply-accumulates a second. *Bound* is "
            "the speed-up if all but the convolutions took no time. Other forms of the same network are timed "
            "interleaved with ours: above 1 they would be faster."
        ),
        "",
    ]
    for name, entry in networks.items():
        parts += [
            (
                f"### {name}: {spread(entry['speedup'])} of float, {spread(entry['over_defaults'])} of "
                f"`quantize_static`'s defaults, bound {entry['bound']:.2f}x"
            ),
            "",
            "| kind of node | float: nodes | µs | GMAC/s | int8: nodes | µs | GMAC/s | faster |",
            "|---|---|---|---|---|---|---|---|",
            *_rows(entry["parts"]),
            "",
            "| form | speed over ours |",
            "|---|---|",
            *(f"| {row['form']} | {spread(row['over_ours'])} |" for row in entry["forms"]),
            "",
        ]
    return parts[:-1]


def _rows(parts: dict[str, list[dict[str, Any]]]) -> list[str]:
    named = {form: {part["kind"]: part for part in found} for form, found in parts.items()}
    names = list(dict.fromkeys([*named["float"], *named["int8"]]))
    rows = []
    for name in sorted(names, key=lambda name: KINDS.index(name.split(",")[0])):
        found = [named[form].get(name) for form in ("float", "int8")]
        faster = f"{found[0]['us'] / found[1]['us']:.2f}x" if found[0] and found[1] and found[1]["us"] else ""
        rows.append(f"| {name} | {_cells(found[0])} | {_cells(found[1])} | {faster} |")
    totals = [sum(part["us"] for part in parts[form]) for form in ("float", "int8")]
    counts = [sum(part["nodes"] for part in parts[form]) for form in ("float", "int8")]
    rows.append(
        f"| all | {counts[0]} | {totals[0]:.0f} |  | {counts[1]} | {totals[1]:.0f} |  | {totals[0] / totals[1]:.2f}x |"
    )
    return rows


def _cells(part: dict[str, Any] | None) -> str:
    if part is None:
        return " |  | "
    speed = f"{part['macs'] / part['us'] / 1e3:.0f}" if part["macs"] and part["us"] else ""
    return f"{part['nodes']} | {part['us']:.1f} | {speed}"


if __name__ == "__main__":
    main()
