"""Layers of stacked recurrent modules: nn.LSTM, nn.GRU and nn.RNN of fewer layers, for a moment or for good.

A stack keeps the weights of all its layers itself, `weight_ih_l0`, `weight_hh_l0_reverse` and so on. Here a layer has a
name as though it were a module: `recurrent.layers.1` is the second layer of the stack `recurrent`.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from compressor.structure.pass_through import PassThrough

_INSIDE = "layers"
_SUFFIX = re.compile(r"_l(\d+)(?=_reverse$|$)")
# What a stack remembers of its layers besides their weights.
_BOOKKEEPING = ("num_layers", "input_size", "_all_weights", "_flat_weights_names", "_flat_weights", "_flat_weight_refs")


def layer_name(stack: str, layer: int) -> str:
    """What layer number `layer` of the module `stack` is called."""
    return f"{stack}.{_INSIDE}.{layer}" if stack else f"{_INSIDE}.{layer}"


def stack_and_layer(name: str) -> tuple[str, int]:
    """The module and the number that `layer_name` made `name` of."""
    owner, _, layer = name.rpartition(".")
    return owner.removesuffix(_INSIDE).removesuffix("."), int(layer)


def is_layer(model: nn.Module, name: str) -> bool:
    """Whether `name` is that of a layer of a stack in `model`, and not of a module."""
    return re.search(rf"(^|\.){_INSIDE}\.\d+$", name) is not None and isinstance(
        dict(model.named_modules(remove_duplicate=False)).get(stack_and_layer(name)[0]), nn.RNNBase
    )


def layers_of(stack: nn.RNNBase) -> list[int]:
    """The numbers of the layers that `stack` runs: all, unless some are skipped."""
    return [_number(names[0]) for names in stack._all_weights[:: _directions(stack)]]  # noqa: SLF001 - torch tells them nowhere else


def weights_of_layer(stack: nn.RNNBase, layer: int) -> list[str]:
    """The names of the weights of one layer of `stack`, of both directions."""
    return [name for names in stack._all_weights for name in names if _number(names[0]) == layer]  # noqa: SLF001 - as above


def droppable_layers(stack: nn.RNNBase) -> list[int]:
    """The layers whose input is of the size of their output; none where weights are computed or layers hold parts."""
    known = [name for layer in layers_of(stack) for name in weights_of_layer(stack, layer)]
    if set(known) != set(stack._parameters) or any(True for _ in stack.children()):  # noqa: SLF001 - parameters by name, own ones alone
        return []
    made = (stack.proj_size or stack.hidden_size) * _directions(stack)
    return [layer for layer in layers_of(stack) if getattr(stack, f"weight_ih_l{layer}").shape[1] == made]


def as_if_modules(model: nn.Module) -> dict[str, str]:
    """By name, the parameters of stacked layers with the name they would have if the layers were modules."""
    places = {}
    for stack_name, stack in model.named_modules(remove_duplicate=False):
        if isinstance(stack, nn.RNNBase):
            prefix = f"{stack_name}." if stack_name else ""
            for layer in layers_of(stack):
                for key in weights_of_layer(stack, layer):
                    places[prefix + key] = f"{layer_name(stack_name, layer)}.{key}"
    return places


@contextmanager
def layers_skipped(stack: nn.RNNBase, gone: Collection[int]) -> Iterator[None]:
    """`stack` without the layers `gone`, of which it needs another one, and whole again afterwards.

    Its parameters stay where they are and keep their names; the layers that are left keep their numbers.
    """
    state = vars(stack)
    whole = {key: state[key] for key in _BOOKKEEPING}
    _run_only_(stack, [layer for layer in layers_of(stack) if layer not in gone])
    try:
        yield
    finally:
        state.update(whole)
        stack.flatten_parameters()


def layer_activations(stack: nn.RNNBase, args: Sequence[Any]) -> dict[int, tuple[Tensor, Tensor]]:
    """By number, what goes into each layer of `stack` and what comes out, when it is called with `args`.

    Of packed sequences, their data. `stack` is in eval mode: no dropout between layers.
    """
    sequence, state = args[0], args[1] if len(args) > 1 else None
    directions, found = _directions(stack), {}
    running = layers_of(stack)
    for place, layer in enumerate(running):
        rows = slice(place * directions, (place + 1) * directions)
        own = state[rows] if isinstance(state, Tensor) else state and tuple(part[rows] for part in state)
        with layers_skipped(stack, [other for other in running if other != layer]):
            made, _ = stack.forward(sequence, own)
        found[layer] = plain(sequence), plain(made)
        sequence = made
    return found


def plain(sequence: Any) -> Any:
    """The tensor that a packed sequence holds; everything else itself."""
    return sequence.data if isinstance(sequence, PackedSequence) else sequence


def drop_layers_(model: nn.Module, dropped: Mapping[str, Sequence[int]], counts: Mapping[str, int]) -> nn.Module:
    """`model` itself with the layers `dropped` out of its stacks, by module name; the others move down.

    Parameters stay the same objects. A stack without layers becomes a PassThrough. `counts` are the layers that stacks
    must have before. Raises ValueError, and changes nothing, where they do not fit.
    """
    work = [
        (name, _checked(model, name, gone, counts.get(name)), set(map(int, gone))) for name, gone in dropped.items()
    ]
    for name, stack, gone in work:
        kept = [layer for layer in layers_of(stack) if layer not in gone]
        if not kept:
            parent, _, key = name.rpartition(".")
            setattr(model.get_submodule(parent), key, PassThrough(with_state=True).train(stack.training))
            continue
        names = {
            key: _SUFFIX.sub(f"_l{place}", key)
            for place, old in enumerate(kept)
            for key in weights_of_layer(stack, old)
        }
        weights = {new: stack._parameters[old] for old, new in names.items()}  # noqa: SLF001 - parameters by name, renamed
        _run_only_(stack, kept)
        vars(stack)["_all_weights"] = [[names[key] for key in keys] for keys in stack._all_weights]  # noqa: SLF001 - no public name
        vars(stack)["_flat_weights_names"] = list(names.values())
        stack._parameters.clear()  # noqa: SLF001 - as above
        stack._parameters.update(weights)  # noqa: SLF001 - as above
    return model


def _checked(model: nn.Module, name: str, gone: Sequence[int], count: int | None) -> nn.RNNBase:
    stack = dict(model.named_modules(remove_duplicate=False)).get(name)
    if not isinstance(stack, nn.RNNBase):
        raise ValueError(f"the plan drops layers of {name!r}, which is no recurrent module of {type(model).__name__}")
    there = layers_of(stack)
    if count is not None and len(there) != count:
        raise ValueError(
            f"the plan drops layers of {name!r} with {count} layers, but that of {type(model).__name__} has "
            f"{len(there)}; give the model that the plan was made for"
        )
    whole = isinstance(gone, list | tuple) and all(type(layer) is int and layer in there for layer in gone)
    if not whole or not gone or len(set(gone)) != len(gone) or not set(gone) <= set(droppable_layers(stack)):
        raise ValueError(
            f"the plan drops the layers {gone!r} of {name!r}; droppable there are {droppable_layers(stack)}, those "
            "whose input is of the size of their output"
        )
    if not name and len(gone) == len(there):
        raise ValueError(f"the plan drops every layer of {type(model).__name__}, and nothing would be left")
    return stack


def _run_only_(stack: nn.RNNBase, kept: Sequence[int]) -> None:
    state = vars(stack)
    names = [names for names in stack._all_weights if _number(names[0]) in kept]  # noqa: SLF001 - torch tells them nowhere else
    state["num_layers"] = len(kept)
    state["input_size"] = int(getattr(stack, names[0][0]).shape[1])
    state["_all_weights"] = names
    state["_flat_weights_names"] = [name for part in names for name in part]
    stack._init_flat_weights()  # noqa: SLF001 - as torch does after a change of its weights


def _directions(stack: nn.RNNBase) -> int:
    return 2 if stack.bidirectional else 1


def _number(name: str) -> int:
    found = _SUFFIX.search(name)
    if found is None:
        raise ValueError(f"{name!r} is no weight of a recurrent layer")
    return int(found.group(1))
