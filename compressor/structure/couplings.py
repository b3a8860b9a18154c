"""Which channels of a network hang together, found by torch-pruning and read back as plans of our own.

Fang et al. 2023, "DepGraph", arXiv:2301.12900. The only file that imports torch-pruning.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from compressor.batches import Inputs
from compressor.errors import StageError
from compressor.kept_state import private_copy
from compressor.structure.bisection import bisected
from compressor.structure.blocks import instead_of_channels
from compressor.structure.plan import Entry, Slices, apply_plan_
from compressor.structure.tensor_ids import Sizes, mask_, number_, tensors_of
from compressor.structure.trials import difference, evaluating
from compressor.workload import call_model, output_tensor

# Layers whose inner widths torch-pruning gets wrong or breaks on.
_OPAQUE = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One side of one layer of a group: its tensors with the dimension that the channels lie along.

    `indices[i]` belongs to channel `channels[i]` of the group. `makes`: a convolution or linear layer whose outputs
    these are; `is_norm`: a batch normalization.
    """

    module: str
    tensors: tuple[tuple[str, int], ...]
    indices: tuple[int, ...]
    channels: tuple[int, ...]
    makes: bool
    is_norm: bool

    def fold(self, importance: Tensor, width: int) -> Tensor:
        """`importance` of this part's indices summed up by channel, (width,)."""
        if self.indices == self.channels == tuple(range(width)):
            return importance[:width].cpu().double()
        folded = torch.zeros(width, dtype=torch.float64)
        return folded.index_add_(0, torch.tensor(self.channels), importance.cpu()[list(self.indices)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Coupled:
    """Layers that keep or lose their channels together; `name` is that of the first.

    `kind` says what a channel is: "channels", "heads", "units" (recurrent) or "neurons" (of linear layers). `locked` is
    why none may go, where that is known.
    """

    name: str
    width: int
    parts: tuple[Part, ...]
    makes_output: bool
    opaque: bool
    kind: str = "channels"
    locked: str | None = None


class Couplings:
    """Which channels of a model hang together, and the plan that takes some out.

    torch-pruning's graph of a copy of the model, in which every tensor element is its own number; cuts are tried on
    other copies, whose constant parameters should be `distinct_`. `unreached` are the convolutions and linear layers
    that the example inputs do not run through. Trials leave no `slices` behind. Raises StageError where the graph
    cannot be built.
    """

    unreached: dict[str, str]

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self._model, self._inputs = model, inputs
        self.slices: Slices = {}
        self.settled = False
        self._shadow = private_copy(model)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()}
        for parameter in self._shadow.parameters():
            parameter.requires_grad_(parameter.is_floating_point())  # the graph is traced by autograd
        opaque = [module for module in self._shadow.modules() if isinstance(module, _OPAQUE)]
        handles = [module.register_forward_hook(_hide, with_kwargs=True) for module in opaque]
        self._graph = tp.DependencyGraph()
        self._pruners = [pruner for pruner in self._graph.REGISTERED_PRUNERS.values() if pruner is not None]
        try:
            with torch.enable_grad(), _unchanged(self._pruners):
                self._graph.build_dependency(
                    self._shadow,
                    inputs,
                    forward_fn=call_model,
                    output_transform=_marked_output,
                    ignored_layers=opaque,
                    verbose=False,
                )
        except Exception as error:
            raise StageError(
                f"the couplings between the channels of {type(model).__name__} cannot be traced "
                f"({type(error).__name__}: {error}); {instead_of_channels(model, inputs)}"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
        self._names = {module: name for name, module in self._shadow.named_modules()}
        inside = {part for module in opaque for part in module.modules()}
        layers = [
            module
            for module in self._shadow.modules()
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and module not in inside  # noqa: SLF001 - no public name
        ]
        names = (self._names[layer] for layer in layers if layer not in self._graph.module2node)
        self.unreached = dict.fromkeys(names, "danger: the example inputs do not reach it")
        self._roots: dict[Coupled, nn.Module] = {}
        seen: set[nn.Module] = set()
        for layer in layers:
            if layer in seen or layer not in self._graph.module2node:
                continue
            items = self._items(layer, range(_width(layer)))
            seen |= {
                item.dep.target.module for item in items if self._graph.is_out_channel_pruning_fn(item.dep.handler)
            }
            self._roots[self._coupled(layer, items)] = layer
        number_(self._shadow)
        self._whole = Sizes.of(self._shadow, self._shapes)

    def entries(self, gone: dict[Coupled, list[int]]) -> list[Entry]:
        """One plan entry for each group, to be applied in order. Raises ValueError where no plan can say it."""
        return self._cut(gone)[0]

    def sizes_without(self, gone: dict[Coupled, list[int]]) -> Sizes:
        """What is left of every tensor."""
        return self._cut(gone)[1]

    @property
    def groups(self) -> tuple[Coupled, ...]:
        """Every group, locked ones with their reason."""
        return tuple(self._roots)

    def settle(self) -> None:
        """Locks what cannot be narrowed, with the reason: every second channel of all groups goes in a trial; once."""
        if self.settled:
            return
        self.settled = True
        free = [group for group in self._roots if not group.makes_output and not group.opaque]
        _, faults = bisected(
            free, lambda some: self.fault_without({group: list(range(0, 2 * (group.width // 2), 2)) for group in some})
        )
        self._roots = {
            replace(group, locked=faults[group]) if group in faults else group: root
            for group, root in self._roots.items()
        }

    def fault_without(self, gone: dict[Coupled, list[int]]) -> str | None:
        """Why these channels cannot go, or None: narrowed, the model must run at two batch sizes, backwards too, and
        compute what it computes with the channels at zero.
        """
        if not gone:
            return None
        try:
            entries, sizes = self._cut(gone)
        except Exception as error:  # noqa: BLE001 - torch-pruning raises whatever it runs into
            return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        try:
            narrow = apply_plan_(private_copy(self._model), entries)
        except Exception as error:  # noqa: BLE001 - as above: the plan may be one that no model survives
            return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        with evaluating(self._model):
            masked = mask_(private_copy(self._model), sizes)
            return difference(narrow.eval(), masked, self._inputs, samples=2, backward=True)

    def _cut(self, gone: dict[Coupled, list[int]]) -> tuple[list[Entry], Sizes]:
        memory = _Memory(self._shadow, self._graph)
        sizes, entries = self._whole, list[Entry]()
        try:
            with _unchanged(self._pruners):
                for group, channels in gone.items():
                    self._items(self._roots[group], channels).prune()
                    after = Sizes.of(self._shadow, self._shapes)
                    entries.append(after.entry_from(sizes))
                    sizes = after
        finally:
            memory.restore()
        return entries, sizes

    def _items(self, layer: nn.Module, channels: Any) -> Any:
        pruner = self._graph.get_pruner_of_module(layer)
        return self._graph.get_pruning_group(layer, pruner.prune_out_channels, list(channels))

    def _coupled(self, layer: nn.Module, items: Any) -> Coupled:
        parts = []
        targets = [item.dep.target.module for item in items]
        for item, target in zip(items, targets, strict=True):
            outward = bool(self._graph.is_out_channel_pruning_fn(item.dep.handler))
            if isinstance(target, nn.Parameter):
                name = next(name for name, tensor in tensors_of(self._shadow).items() if tensor is target)
                module = name.rpartition(".")[0]
                tensors: tuple[tuple[str, int], ...] = ((name, int(item.dep.target.pruning_dim) % target.ndim),)
            elif target in self._names:
                module = self._names[target]
                tensors = _channel_tensors(target, module, outward=outward, largest=max(item.idxs))
            else:
                continue
            parts.append(
                Part(
                    module=module,
                    tensors=tensors,
                    indices=tuple(item.idxs),
                    channels=tuple(item.root_idxs),
                    makes=outward and isinstance(target, nn.Linear | nn.modules.conv._ConvNd) and bool(tensors),  # noqa: SLF001 - as above
                    is_norm=isinstance(target, nn.modules.batchnorm._BatchNorm),  # noqa: SLF001 - as above
                )
            )
        return Coupled(
            name=self._names[layer],
            width=_width(layer),
            parts=tuple(parts),
            makes_output=any(isinstance(target, tp.ops._OutputOp) for target in targets),  # noqa: SLF001 - no public name
            opaque=any(_Opaque.__name__ in str(target) for target in targets if target not in self._names),
        )


class _Memory:
    """What pruning changes in a network and its graph, to be put back afterwards."""

    def __init__(self, shadow: nn.Module, graph: Any) -> None:
        self._graph = graph
        nodes = list(graph.module2node.values())
        self._targets = [(node, node.module) for node in nodes]
        self._maps = (dict(graph.module2node), dict(graph._param_to_name))  # noqa: SLF001 - it has no other way back
        holders = [*shadow.modules(), *(node.module for node in nodes if not isinstance(node.module, Tensor))]
        self._states = [(holder, {key: _shallow(value) for key, value in vars(holder).items()}) for holder in holders]

    def restore(self) -> None:
        for holder, state in self._states:
            vars(holder).clear()
            vars(holder).update(state)
        for node, module in self._targets:
            node.module = module
        self._graph.module2node, self._graph._param_to_name = self._maps  # noqa: SLF001 - as above


@contextmanager
def _unchanged(objects: list[Any]) -> Iterator[None]:
    """The library's own pruners as they were: they are shared by all graphs, and remember the last dimension."""
    states = [dict(vars(item)) for item in objects]
    try:
        yield
    finally:
        for item, state in zip(objects, states, strict=True):
            vars(item).clear()
            vars(item).update(state)


class _Opaque(torch.autograd.Function):
    """A stand-in for a layer whose inside torch-pruning must not look into: everything in meets everything out."""

    @staticmethod
    def forward(_ctx: Any, output: Tensor, *_inputs: Tensor) -> Tensor:
        return output.clone()

    @staticmethod
    def backward(_ctx: Any, *_gradients: Any) -> Any:
        raise NotImplementedError("the stand-in is for tracing alone")


def _marked_output(raw: Any) -> Tensor:
    # The graph knows an output by an operation of its own, which a model that ends with a layer does not have.
    return output_tensor(raw).clone()


def _hide(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.is_floating_point()]

    def hidden(value: Any) -> Any:
        if isinstance(value, Tensor):
            return _Opaque.apply(value.detach(), *inputs)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if isinstance(value, nn.utils.rnn.PackedSequence):
            return value._replace(data=hidden(value.data))
        return tuple(hidden(item) for item in value) if isinstance(value, tuple) else value

    return hidden(output)


def _width(layer: nn.Module) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]  # a convolution's is an int


def _channel_tensors(module: nn.Module, name: str, *, outward: bool, largest: int) -> tuple[tuple[str, int], ...]:
    """The tensors of `module` with the dimension that its output (`outward`) or input channels lie along."""
    if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):  # noqa: SLF001 - no public name
        flipped = isinstance(module, nn.modules.conv._ConvTransposeNd) and module.groups == 1  # noqa: SLF001 - the same
        sides = [("weight", int(outward == flipped)), *([("bias", 0)] if outward else [])]
    else:
        sides = [("weight", 1 if isinstance(module, nn.Embedding) else 0), ("bias", 0)]
    prefix = f"{name}." if name else ""
    own = dict(module.named_parameters(recurse=False))
    # Grouped convolutions have fewer inputs in their weights than channels come in.
    return tuple((prefix + key, dim) for key, dim in sides if key in own and largest < own[key].shape[dim])


def _shallow(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, dict | list) else value
