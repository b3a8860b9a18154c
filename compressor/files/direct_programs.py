"""Programs of torch.export that can be written to ONNX as they are, without torch's decomposition of every operator.

Decomposing traces the whole network twice more, with symbols for every free size, and takes more than half of an
export. A network of the operators below needs none of it: each has an operator of ONNX of its own, by torch's table of
translations or by the two here. What they give is the same file.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from onnxscript import opset20 as onnx_operators
from torch.fx import Node
from torch.onnx._internal.exporter import _decomp, _registration  # where the exporter takes its tables from

_ATEN = torch.ops.aten

# What an in-place operator computes, where nobody else has a use for what it overwrites.
_IN_PLACE = {
    _ATEN.relu_.default: _ATEN.relu.default,
    _ATEN.hardtanh_.default: _ATEN.hardtanh.default,
    _ATEN.hardswish_.default: _ATEN.hardswish.default,
    _ATEN.hardsigmoid_.default: _ATEN.hardsigmoid.default,
    _ATEN.silu_.default: _ATEN.silu.default,
    _ATEN.sigmoid_.default: _ATEN.sigmoid.default,
    _ATEN.leaky_relu_.default: _ATEN.leaky_relu.default,
    _ATEN.add_.Tensor: _ATEN.add.Tensor,
    _ATEN.mul_.Tensor: _ATEN.mul.Tensor,
}
# These make new tensors: no other tensor shows what is written into their results.
_MAKES_NEW = {
    *_IN_PLACE.values(),
    _ATEN.conv1d.default,
    _ATEN.conv2d.default,
    _ATEN.conv3d.default,
    _ATEN.linear.default,
    _ATEN.cat.default,
    _ATEN.mean.dim,
    _ATEN.sub.Tensor,
    _ATEN.gelu.default,
    _ATEN.tanh.default,
    _ATEN.batch_norm.default,
    _ATEN.adaptive_avg_pool2d.default,
}
_KNOWN = {
    *_MAKES_NEW,
    _ATEN.dropout.default,
    _ATEN.max_pool2d.default,
    _ATEN.avg_pool2d.default,
    _ATEN.elu.default,
    _ATEN.prelu.default,
    _ATEN.softmax.int,
    _ATEN.layer_norm.default,
    _ATEN.group_norm.default,
    _ATEN.upsample_nearest2d.vec,
    _ATEN.upsample_bilinear2d.vec,
    _ATEN.pad.default,
    _ATEN.permute.default,
    _ATEN.transpose.int,
    _ATEN.unsqueeze.default,
    _ATEN.embedding.default,
}


def _batch_norm(x: Any, weight: Any, bias: Any, mean: Any, variance: Any, *settings: Any) -> Any:
    epsilon = settings[2]  # behind whether it trains, which it does not, and the momentum
    return onnx_operators.BatchNormalization(x, weight, bias, mean, variance, epsilon=epsilon)


def _global_pool(x: Any, size: Any) -> Any:
    del size
    return onnx_operators.GlobalAveragePool(x)


def _flatten(x: Any, start: int = 0, end: int = -1) -> Any:
    del start, end
    if len(x.shape) == 2:
        return onnx_operators.Identity(x)
    return onnx_operators.Reshape(x, onnx_operators.Constant(value_ints=[-1, math.prod(x.shape[1:])]), allowzero=1)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    _ATEN.batch_norm.default: _batch_norm,
    _ATEN.flatten.using_ints: _flatten,
    _ATEN.adaptive_avg_pool2d.default: _global_pool,
}


@contextmanager
def one_table(*, direct: bool = False) -> Iterator[None]:
    """Within it exporters take copies of one table of translations, which torch builds anew for every export.

    A second goes into reading the sources of five hundred functions, of which programs that are written as they are
    need some forty: `direct` has the table of these. A torch that has no such table, or has it elsewhere, builds it as
    ever.
    """
    kind: Any = getattr(_registration, "ONNXRegistry", None)
    own = vars(kind).get("from_torchlib") if kind is not None else None
    if not isinstance(own, classmethod):
        yield
        return
    build: Callable[..., Any] = own.__func__

    def copied(cls: Any, *settings: Any, **named: Any) -> Any:
        made = copy.copy(_table(build, cls, settings, tuple(named.items()), direct))
        # An export may add translations of its own.
        made.functions = {target: list(found) for target, found in made.functions.items()}
        return made

    kind.from_torchlib = classmethod(copied)
    try:
        yield
    finally:
        kind.from_torchlib = own


@cache
def _table(
    build: Callable[..., Any],
    kind: Any,
    settings: tuple[Any, ...],
    named: tuple[tuple[str, Any], ...],
    direct: bool,  # noqa: FBT001 # a key of the cache
) -> Any:
    with _known_alone() if direct else nullcontext():
        return build(kind, *settings, **dict(named))


@contextmanager
def _known_alone() -> Iterator[None]:
    """Within it onnxscript knows translations of the operators above alone; all, where it keeps them elsewhere."""
    from onnxscript.function_libs.torch_lib import registration

    import_module("onnxscript.function_libs.torch_lib.ops")  # which registers them
    every: Any = getattr(registration, "default_registry", None)
    if not hasattr(every, "items"):
        yield
        return
    known_operators: set[Any] = _KNOWN
    names = {f"{target.name()}{end}" for target in known_operators for end in ("", ".default")}
    known = [(name, found) for name, found in every.items() if name in names]
    registration.default_registry = SimpleNamespace(items=lambda: iter(known))
    try:
        yield
    finally:
        registration.default_registry = every


def write_direct_(program: torch.export.ExportedProgram, **settings: Any) -> torch.onnx.ONNXProgram | None:
    """`program` as an ONNX program, by `torch.onnx.export` with these settings; None where it needs decomposing."""
    if not made_direct_(program):
        return None
    # The exporter asks the program for its decomposition.
    program.run_decompositions = lambda *_, **__: program
    with one_table(direct=True), _no_decompositions():
        return torch.onnx.export(program, dynamo=True, custom_translation_table=TRANSLATIONS, **settings)


@contextmanager
def _no_decompositions() -> Iterator[None]:
    """Within it the exporter makes no table of decompositions, for which torch looks through all of its operators."""
    name = "create_onnx_friendly_decomposition_table"
    own = getattr(_decomp, name, None)
    if own is None:
        yield
        return
    setattr(_decomp, name, lambda *_: {})
    try:
        yield
    finally:
        setattr(_decomp, name, own)


def made_direct_(program: torch.export.ExportedProgram) -> bool:
    """Whether `program` can be written as it is, which it is from now on: in-place operators have become others.

    Where it cannot, it is left as it was.
    """
    signature = program.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        return False
    calls = [node for node in program.graph.nodes if node.op not in {"placeholder", "output"}]
    if not all(_is_known(node) for node in calls):
        return False
    for node in calls:
        node.target = _IN_PLACE.get(node.target, node.target)
    program.graph_module.recompile()
    return True


def _is_known(node: Node) -> bool:
    if node.op != "call_function":
        return False
    arguments: tuple[Any, ...] = node.args
    if node.target in _IN_PLACE:
        overwritten = arguments[0]
        is_free = isinstance(overwritten, Node) and _is_own(overwritten) and len(overwritten.users) == 1
        # The result of an in-place operator keeps its type, another's is the widest of what it is given.
        return is_free and len({part.meta["val"].dtype for part in (node, *node.all_input_nodes)}) == 1
    if node.target is _ATEN.batch_norm.default:
        return all(isinstance(argument, Node) for argument in arguments[:5]) and arguments[5] is False
    if node.target is _ATEN.adaptive_avg_pool2d.default:
        return list(arguments[1]) == [1, 1] and arguments[0].meta["val"].ndim == 4
    if node.target is _ATEN.flatten.using_ints:
        batch, *sizes = arguments[0].meta["val"].shape
        from_second = arguments[1:] in {(1,), (1, -1), (1, len(sizes))}
        return from_second and not isinstance(batch, int) and all(isinstance(size, int) for size in sizes)
    if node.target is _ATEN.dropout.default:
        return arguments[2] is False
    return node.target in _KNOWN


def _is_own(node: Node) -> bool:
    return node.op == "call_function" and (node.target in _MAKES_NEW or node.target in _IN_PLACE)
