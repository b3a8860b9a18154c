"""Which layers run in one call of a model, on which sizes, and what is left of them when their weights are narrower."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compressor.batches import Inputs
from compressor.latency.operators import Operator, linear, matmul, operators_of_layer
from compressor.workload import call_model

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LayerCall:
    """One call of a layer, or a product outside of layers (no `tensors`): its operators and the weights it reads."""

    name: str
    kind: str
    operators: tuple[Operator, ...]
    tensors: tuple[str, ...] = ()

    def narrowed(self, before: Mapping[str, Shape], after: Mapping[str, Shape]) -> list[Operator]:
        """The operators once the weights, by full name, are of the shapes `after` instead of `before`."""
        if not self.operators or before == after:
            return list(self.operators)
        weight = f"{self.name}.{self.tensors[0]}" if self.name else self.tensors[0]
        if self.kind in {"linear", "transposed_linear"}:
            sides = after[weight] if self.kind == "transposed_linear" else after[weight][::-1]
            return [replace(op, inputs=sides[0], outputs=sides[1]) for op in self.operators]
        if self.kind in {"conv", "conv_transpose"}:
            return [_convolution(op, self.kind, before[weight], after[weight]) for op in self.operators]
        if self.kind == "recurrent":
            return [_recurrent(op, layer, self.name, before, after) for layer, op in enumerate(self.operators)]
        if self.kind == "cell":
            prefix = f"{self.name}." if self.name else ""
            pair = (after[f"{prefix}weight_ih"], after[f"{prefix}weight_hh"])
            return [replace(op, inputs=side[1], outputs=side[0]) for op, side in zip(self.operators, pair, strict=True)]
        return _attention(self, before, after)


@dataclass(kw_only=True)
class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    calls: list[LayerCall] = field(default_factory=list)
    stack: list[str] = field(default_factory=list)
    # Matrices by where they lie and how large they are.
    weights: dict[tuple[int, int], str] = field(default_factory=dict)
    inside: int = 0

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self.inside and (found := _loose(func, args, output)):
            self.calls.append(self._call(found, args))
        return output

    def _call(self, operators: list[Operator], args: Any) -> LayerCall:
        """A product outside of layers: a linear layer where its right side is a whole parameter, else a loose one."""
        right = [value for value in args if isinstance(value, Tensor)][-1]
        name = self.weights.get((right.data_ptr(), right.numel()))
        if name is None or operators[0].kind != "linear" or len(operators) > 1 or right.ndim != 2:
            return LayerCall(name=self.stack[-1] if self.stack else "", kind="loose", operators=tuple(operators))
        owner, _, key = name.rpartition(".")
        # As it lies in memory, a weight is (inputs, outputs), unless it was turned around for the product.
        kind = "linear" if right.stride(0) == 1 and right.shape[0] > 1 else "transposed_linear"
        return LayerCall(name=owner, kind=kind, operators=tuple(operators), tensors=(key,))


def calls_of(model: nn.Module, inputs: Inputs) -> list[LayerCall]:
    """The layers that run in one call of `model` on `inputs`, in order, with the products that run outside of them.

    Layers are convolutions, linear layers, recurrent ones and attention; what runs inside of one is part of it.
    """
    matrices = {name: weight for name, weight in model.named_parameters() if weight.ndim == 2}
    watch = _Watch(weights={(weight.data_ptr(), weight.numel()): name for name, weight in matrices.items()})
    with _hooked(model, watch), torch.no_grad(), watch:
        call_model(model, inputs)
    return watch.calls


@contextmanager
def _hooked(model: nn.Module, watch: _Watch) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():
        kind = _kind(module)

        def enter(module: nn.Module, args: Any, kwargs: Any, name: str = name, kind: str | None = kind) -> None:
            watch.stack.append(name)
            if kind is not None and not watch.inside:
                operators = _operators(module, kind, (*args, *kwargs.values()))
                tensors = tuple(key for key in _weights(module) if not key.endswith("bias"))
                watch.calls.append(LayerCall(name=name, kind=kind, operators=operators, tensors=tensors))
            watch.inside += kind is not None

        def leave(_module: nn.Module, _args: Any, _output: Any, kind: str | None = kind) -> None:
            watch.stack.pop()
            watch.inside -= kind is not None

        handles += [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, nn.modules.conv._ConvTransposeNd):  # noqa: SLF001 - torch has no public name for them all
        return "conv_transpose"
    if isinstance(module, nn.modules.conv._ConvNd):  # noqa: SLF001 - as above
        return "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.RNNBase):
        return "recurrent"
    if isinstance(module, nn.RNNCellBase):
        return "cell"
    if isinstance(module, nn.MultiheadAttention):
        return "attention"
    # transformers' Conv1D: a linear layer whose weight is (inputs, outputs).
    if type(module).__name__ == "Conv1D" and getattr(module, "weight", torch.empty(0)).ndim == 2:
        return "transposed_linear"
    return None


def _operators(module: nn.Module, kind: str, values: Sequence[Any]) -> tuple[Operator, ...]:
    first = next((value for value in values if isinstance(value, Tensor | nn.utils.rnn.PackedSequence)), None)
    if isinstance(first, nn.utils.rnn.PackedSequence):
        # As many steps as the longest sequence has, of the batch at its fullest.
        steps, batch = len(first.batch_sizes), int(first.batch_sizes[0])
        lead = (batch, steps) if getattr(module, "batch_first", False) else (steps, batch)
        return operators_of_layer(module, (*lead, first.data.shape[-1]))
    if first is None or not first.numel():  # an expert that no row is sent to computes nothing
        return ()
    rows = math.prod(first.shape[:-1])
    if kind == "transposed_linear":
        inputs, outputs = module.weight.shape  # type: ignore[misc]  # its weight is a matrix
        return (linear(int(inputs), int(outputs), rows),)
    if isinstance(module, nn.RNNCellBase):
        weights: tuple[Tensor, Tensor] = (module.weight_ih, module.weight_hh)
        return tuple(linear(weight.shape[1], weight.shape[0], rows) for weight in weights)
    return operators_of_layer(module, tuple(first.shape))


def _weights(module: nn.Module) -> list[str]:
    # Attention's last projection is a layer of its own inside.
    return [name for name, _ in module.named_parameters()]


def _loose(func: Any, args: Any, output: Any) -> list[Operator]:
    """The products that an operation outside of known layers computes."""
    name = func.overloadpacket.__name__ if hasattr(func, "overloadpacket") else ""
    tensors = [value for value in args if isinstance(value, Tensor)]
    if not all(tensor.numel() for tensor in tensors):
        return []
    if name in {"bmm", "baddbmm"}:
        left, right = tensors[-2:]
        return [matmul(left.shape[1], left.shape[2], right.shape[2], batch=left.shape[0])]
    if name in {"mm", "addmm"}:
        left, right = tensors[-2:]
        return [linear(left.shape[1], right.shape[1], left.shape[0])]
    if name.startswith("_scaled_dot_product"):
        query, key, value = tensors[:3]
        lead, rows, inner, length = math.prod(query.shape[:-2]), query.shape[-2], query.shape[-1], key.shape[-2]
        return [matmul(rows, inner, length, batch=lead), matmul(rows, length, value.shape[-1], batch=lead)]
    if name == "convolution":
        weight = tensors[1]
        # A kernel runs at every place of the output, a transposed one at every place of the input.
        made = tensors[0] if args[6] else next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        rows = made.numel() // weight.shape[0]
        return [linear(math.prod(weight.shape[1:]), weight.shape[0], max(1, rows))]
    return []


# What is left of a layer's operators when its weights are narrower. -----------------------------------------------


def _convolution(op: Operator, kind: str, before: Shape, after: Shape) -> Operator:
    rows, each = after[:2]
    if op.groups == 1:
        inputs, outputs = (rows, each) if kind == "conv_transpose" else (each, rows)
        return replace(op, inputs=inputs, outputs=outputs)
    # The rows are groups times what each has: depthwise layers lose groups, others a part of each group.
    of_group = max(1, before[0] // op.groups)
    groups = rows // of_group if of_group == 1 or rows % op.groups else op.groups
    groups = max(1, groups)
    rows = max(groups, rows // groups * groups)
    inputs, outputs = (rows, each * groups) if kind == "conv_transpose" else (each * groups, rows)
    return replace(op, inputs=inputs, outputs=outputs, groups=groups)


def _recurrent(
    op: Operator, layer: int, name: str, before: Mapping[str, Shape], after: Mapping[str, Shape]
) -> Operator:
    prefix = f"{name}." if name else ""
    rows, _ = after[f"{prefix}weight_hh_l{layer}"]
    _, inputs = after[f"{prefix}weight_ih_l{layer}"]
    whole, _ = before[f"{prefix}weight_hh_l{layer}"]
    return replace(op, inputs=inputs, outputs=max(1, round(op.outputs * rows / whole)))


def _attention(call: LayerCall, before: Mapping[str, Shape], after: Mapping[str, Shape]) -> list[Operator]:
    prefix = f"{call.name}." if call.name else ""
    out = f"{prefix}out_proj.weight"
    (width, inner), (_, whole) = after[out], before[out]
    heads = inner / whole
    found = []
    for op in call.operators:
        if op.kind == "linear":
            makes = op is call.operators[-1]
            found.append(replace(op, inputs=inner if makes else width, outputs=width if makes else inner))
        elif op.kind == "matmul":
            found.append(replace(op, batch=max(1, round(op.batch * heads))))
        else:
            found.append(replace(op, size=tuple(max(1, round(size * heads)) for size in op.size)))
    return found
