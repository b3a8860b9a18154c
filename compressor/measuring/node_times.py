"""Where the milliseconds of an exported file go: ONNX Runtime's profile, told by the model's own modules.

The profile speaks of optimized nodes: fused, reordered, renamed. Every node and tensor of a copy of the file is named
by its place in the graph first. Fused nodes are called after one of the nodes that went into them, or write a tensor
that one of them wrote, so that the place can be read back.
"""

import json
import re
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx

from compressor.batches import Inputs
from compressor.files.graphs import initializers, inner_graphs, output_names, parse
from compressor.files.operators import Fact, facts_of
from compressor.measuring.quiet import quiet_machine
from compressor.runtime import feeds_of, load_session, session_options
from compressor.target import Target
from compressor.workload import resize_batch

_PLACE = re.compile(r"@(\d+)@")
_SUFFIX = "_kernel_time"
_FEWEST_RUNS = 10
# ONNX Runtime stops recording after a million events, and reading them all back would take longer than the runs.
_MOST_PROFILED = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class NodeTime:
    """One operator that ONNX Runtime runs, and its milliseconds per call.

    `layer` is the module whose weights it uses (`weighted`), or else the last one whose result it works on; "" where
    there is none. `module` is the innermost module that it belongs to, as far as the graph tells. `place` is its
    number among the nodes of the file's graph, that of one of them where several were fused; None where nothing tells.
    """

    operator: str
    layer: str
    module: str
    weighted: bool
    ms: float
    place: int | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Whose work a node of a graph does: `layer`, `module` and `weighted` as in `NodeTime`."""

    layer: str
    module: str
    weighted: bool


def node_places(onnx_bytes: bytes, modules: Collection[str]) -> list[Place]:
    """Whose work each node of the file's graph does, in order; `modules` are the names of the model's modules."""
    return _places(parse(onnx_bytes), modules)


def node_times(
    onnx_bytes: bytes, inputs: Inputs, *, modules: Collection[str], target: Target, seconds: float = 2.0
) -> tuple[NodeTime, ...]:
    """The time of every operator of the file, in the order of running; together, the median time of a whole call.

    `modules` are the names of the model's modules. Half of `seconds` goes to calls without a profile, which say how
    long a call takes, half to profiled ones, which say how it divides: by the mean of each node's faster half, because
    what disturbs a measurement only ever adds. Nodes inside loops and branches count with the loop or branch.
    """
    sized = resize_batch(inputs, target.batch_size)
    proto = parse(onnx_bytes)
    places = _places(proto, modules)
    _name_by_place_(proto)
    total, durations, operators, outputs = _profiled(proto.SerializeToString(), sized, target.threads, seconds)
    found: list[tuple[int | None, str, float]] = []
    place: int | None = None
    for name, times in durations.items():
        # A node that tells nothing of itself (a change of layout) belongs to the one before it.
        seen = _PLACE.search(" ".join([name, *outputs.get(name, ())]))
        place = int(seen.group(1)) if seen else place
        found.append((place, operators[name], _faster_half(times)))
    whole = sum(duration for _, _, duration in found) or 1.0
    return tuple(
        NodeTime(
            operator=operator,
            layer=places[place].layer if place is not None else "",
            module=places[place].module if place is not None else "",
            weighted=place is not None and places[place].weighted,
            ms=total * duration / whole,
            place=place,
        )
        for place, operator, duration in found
    )


def kernel_times(onnx_bytes: bytes, inputs: Inputs, *, threads: int = 1, seconds: float = 1.0) -> dict[str, float]:
    """{name of an optimized node: its milliseconds per call}, in the order of running; `seconds` as in `node_times`.

    The names are those that ONNX Runtime gives: fused nodes have one of the names that went into them.
    """
    _, durations, _, _ = _profiled(onnx_bytes, inputs, threads, seconds)
    return {name: _faster_half(times) / 1e3 for name, times in durations.items()}


def _faster_half(times: list[float]) -> float:
    # A mean, as the profile counts whole microseconds, which are few for a small operator.
    return float(np.mean(np.sort(times)[: (len(times) + 1) // 2]))


def _places(proto: onnx.ModelProto, modules: Collection[str]) -> list[Place]:
    """Whose work each node of the graph does."""
    constants = initializers(proto.graph)
    parents = {name.rpartition(".")[0] for name in modules if name}
    writers: dict[str, int] = {}
    places: list[Place] = []
    for number, node in enumerate(proto.graph.node):
        owners = [_owner(name, modules) for name in node.input if name in constants]
        weights = [owner for owner in owners if owner is not None]
        # The latest result is the one that its own module computed; an earlier one came around it by a shortcut.
        before = sorted(writers[name] for name in node.input if name in writers)
        sources = [places[writer] for writer in before if places[writer].layer]
        if weights:
            places.append(Place(layer=weights[0], module=weights[0], weighted=True))
        elif sources:
            last = sources[-1]
            leaf = last.weighted and last.module not in parents
            module = last.module.rpartition(".")[0] if leaf else last.module
            places.append(Place(layer=last.layer, module=module, weighted=False))
        else:
            places.append(Place(layer="", module="", weighted=False))
        writers |= dict.fromkeys(filter(None, node.output), number)
    return _lifted(proto, places)


def _lifted(proto: onnx.ModelProto, places: list[Place]) -> list[Place]:
    """`places` with pooling moved out to the module that also holds the next layer: global pooling ends no block."""
    ahead: dict[str, str] = {}
    lifted = list(places)
    for number, node in reversed(list(enumerate(proto.graph.node))):
        place = places[number]
        following = [ahead[name] for name in node.output if name in ahead]
        if Fact.POOLS in facts_of(node.op_type) and following and not place.weighted:
            lifted[number] = replace(place, module=_shared(place.module, following[0]))
        if place.weighted or following:
            # Of several ways on, the first in the graph is the one that is left here, as the walk goes backwards.
            ahead |= dict.fromkeys(node.input, place.module if place.weighted else following[0])
    return lifted


def _shared(first: str, second: str) -> str:
    """The innermost module that holds both, by name."""
    pairs = zip(first.split("."), second.split("."), strict=False)
    return ".".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _owner(tensor: str, modules: Collection[str]) -> str | None:
    """The module that holds a constant of this name, None for those of the graph's own (`c3`)."""
    owner, dot, _ = tensor.rpartition(".")
    return owner if dot and owner in modules else None


def _name_by_place_(proto: onnx.ModelProto) -> None:
    graph = proto.graph
    if any(map(inner_graphs, graph.node)):
        # Subgraphs see the tensors around them by name: these keep theirs, and the nodes' names have to do.
        for number, node in enumerate(graph.node):
            node.name = f"@{number}@"
        return
    fixed = output_names(graph)
    names: dict[str, str] = {}
    for number, node in enumerate(graph.node):
        node.name = f"@{number}@"
        node.input[:] = [names.get(name, name) for name in node.input]
        names |= {name: f"@{number}@{index}" for index, name in enumerate(node.output) if name and name not in fixed}
        node.output[:] = [names.get(name, name) for name in node.output]
    del graph.value_info[:]


def _profiled(
    file: bytes, inputs: Inputs, threads: int, seconds: float
) -> tuple[float, dict[str, list[float]], dict[str, str], Mapping[str, list[str]]]:
    """(milliseconds per call, microseconds of each run by node, the node's operator, what it writes)."""
    plain = load_session(file, session_options(threads))
    feeds = feeds_of(plain, inputs)
    with quiet_machine(threads), tempfile.TemporaryDirectory() as folder:
        calls = _run(plain, feeds, seconds / 2)
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        session = load_session(file, options)
        _run(session, feeds, seconds / 2, most=_MOST_PROFILED)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        optimized = onnx.load(options.optimized_model_filepath).graph.node
    outputs = {node.name: list(node.output) for node in optimized}
    durations: dict[str, list[float]] = {}
    operators: dict[str, str] = {}
    for event in events:
        name = event["name"].removesuffix(_SUFFIX)
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX) and name in outputs:
            durations.setdefault(name, []).append(float(event["dur"]))
            operators[name] = event["args"]["op_name"]
    return float(np.median(calls)) * 1e3, durations, operators, outputs


def _run(session: Any, feeds: dict[str, Any], seconds: float, *, most: int | None = None) -> list[float]:
    """The seconds of every call after the first, which allocates; at most `most` calls."""
    session.run(None, feeds)
    times: list[float] = []
    end = perf_counter() + seconds
    while len(times) < _FEWEST_RUNS or (perf_counter() < end and len(times) != most):
        start = perf_counter()
        session.run(None, feeds)
        times.append(perf_counter() - start)
    return times
