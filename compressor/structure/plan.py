"""Structure decisions as data: JSON that turns a fresh model of the user's own class into the compressed one."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from compressor.kept_state import forget_
from compressor.structure.attention import narrow_attention_, project_by_layers_
from compressor.structure.factored.chains import factor_
from compressor.structure.parametrizations import fold_weights_
from compressor.structure.pass_through import PassThrough
from compressor.structure.recurrent_layers import drop_layers_

Entry = dict[str, Any]
Slot = tuple[nn.Module, str]
# What parameters became, by identity and kept indices, each with the parameter itself, so that it stays alive.
Slices = dict[tuple[int, tuple[tuple[int, bytes], ...]], tuple[Tensor, Tensor]]


def apply_plan_(model: nn.Module, plan: list[Entry], *, slices: Slices | None = None) -> nn.Module:
    """`model` itself with every entry of `plan` carried out, in order.

    An entry is one of
        {"kind": "identity", "modules": [name, ...], "as_tuple": False, "with_state": False, "why": {...}}
        {"kind": "layers", "dropped": {module: [numbers]}, "counts": {module: layers before}, "why": {...}}
        {"kind": "slice", "tensors": {name: {"dim": [kept indices]}}, "shapes": {name: [sizes before]},
         "attributes": {module: {attribute: value}}, "why": {...}}
        {"kind": "attention", "modules": [name, ...]}    # nn.MultiheadAttention becomes NarrowAttention
        {"kind": "projections", "modules": [name, ...]}    # of NarrowAttention: in_proj_weight becomes a layer in_proj
        {"kind": "fold", "tensors": {module: {tensor: what computes it}}}    # computed weights become plain ones
        {"kind": "zeros", "tensors": [name, ...]}    # what is zero in these is meant to stay zero: nothing is done
        {"kind": "clusters", "tensors": [name, ...]}    # equal weights of these are meant to stay equal, likewise
        {"kind": "factor", "layers": {name: {"by": "svd", "ranks": [8], "shape": [64, 64, 3, 3]}}, "why": {...}}
    where `as_tuple`, `with_state`, `counts`, `shapes`, `attributes` and `why` may be left out; "layers" are those of
    stacked nn.LSTM, nn.GRU and nn.RNN, the others of which move down; "factor" puts chains of layers in the place of
    one, with weights that no decomposition made yet. Parameters and buffers keep dtype, device, memory format and
    `requires_grad`; tensors that were tied stay tied. Gradients of sliced parameters are dropped.
    `slices` takes what parameters became and gives it to the next model with the same parameters under the same plan.
    Raises ValueError, naming tensor or module, where the plan does not fit the model.
    """
    if not isinstance(plan, list):
        raise ValueError(f"a plan is a list of entries, got {type(plan).__name__}")
    slots: _Slots | None = None
    for number, entry in enumerate(plan):
        kind = entry.get("kind") if isinstance(entry, dict) else entry
        if kind == "identity":
            for name in _part(entry, "modules", list):
                _replace_(model, name, {key: bool(entry.get(key, False)) for key in ("as_tuple", "with_state")})
            slots = None
        elif kind == "layers":
            drop_layers_(model, _part(entry, "dropped", dict), _part(entry, "counts", dict))
            slots = None
        elif kind == "slice":
            slots = slots or _Slots(model)
            _slice_(model, entry, slots, slices)
        elif kind == "attention":
            narrow_attention_(model, _part(entry, "modules", list))
            slots = None
        elif kind == "projections":
            project_by_layers_(model, _part(entry, "modules", list))
            slots = None
        elif kind == "fold":
            fold_weights_(model, entry.get("tensors", {}))
            slots = None
        elif kind in {"zeros", "clusters"}:
            _require_tensors(model, _part(entry, "tensors", list), kind)
        elif kind == "factor":
            factor_(model, _part(entry, "layers", dict))
            slots = None
        else:
            raise ValueError(
                f"entry {number} of the plan must be of kind 'identity', 'layers', 'slice', 'attention', "
                f"'projections', 'fold', 'zeros', 'clusters' or 'factor', got {kind!r}"
            )
    return forget_(model)


def _replace_(model: nn.Module, name: str, returns: dict[str, bool]) -> None:
    parent_name, _, key = name.rpartition(".")
    parent = _module(model, parent_name)
    old = getattr(parent, key, None) if key else None
    if not isinstance(old, nn.Module):
        raise ValueError(f"the plan removes module {name!r}, which {type(model).__name__} lacks")
    setattr(parent, key, PassThrough(**returns).train(old.training))


def _require_tensors(model: nn.Module, names: list[Any], kind: str) -> None:
    known = {name for name, _ in named_slots(model)}
    for name in names:
        if name not in known:
            raise ValueError(f"the plan holds {kind} of tensor {name!r}, which {type(model).__name__} does not have")


class _Slots:
    """Where every tensor of a model hangs: by name, and all the places of one that is shared."""

    def __init__(self, model: nn.Module) -> None:
        self.by_name = dict(named_slots(model))
        self.modules = dict(model.named_modules(remove_duplicate=False))
        shared: dict[int, list[Slot]] = {}
        for module in model.modules():
            for key, value in _own_tensors(module):
                shared.setdefault(id(value), []).append((module, key))
        self.together = {name: shared[id(getattr(*slot))] for name, slot in self.by_name.items()}


def _slice_(model: nn.Module, entry: Entry, places: _Slots, slices: Slices | None) -> None:
    slots = places.by_name
    shapes = _part(entry, "shapes", dict)
    done: dict[int, tuple[str, dict[str, list[int]]]] = {}
    work: list[tuple[str, Tensor, dict[int, Tensor]]] = []
    # Tensors of one group may share their lists: each is looked at once.
    looked_at: dict[tuple[int, int], Tensor] = {}
    for name in (tensors := _part(entry, "tensors", dict)):
        dims = _part(tensors, name, dict)
        if name not in slots:
            raise ValueError(f"the plan narrows tensor {name!r}, which {type(model).__name__} does not have")
        tensor: Tensor = getattr(*slots[name])
        if name in shapes and tuple(_part(shapes, name, list)) != tuple(tensor.shape):
            raise ValueError(
                f"the plan narrows tensor {name!r} of shape {tuple(shapes[name])}, but {type(model).__name__} has "
                f"{tuple(tensor.shape)}; give the model that the plan was made for"
            )
        kept = {int(dim): _places(name, tensor, dim, indices, looked_at) for dim, indices in dims.items()}
        earlier, other = done.setdefault(id(tensor), (name, dims))
        if other != dims:
            raise ValueError(f"{earlier!r} and {name!r} are one tied tensor, but the plan narrows them differently")
        if earlier == name:
            work.append((name, tensor, kept))
    modules = _part(entry, "attributes", dict)
    attributes = [
        (places.modules.get(module_name) or _module(model, module_name), key, value)
        for module_name in modules
        for key, value in _part(modules, module_name, dict).items()
    ]
    for module, key, value in attributes:
        _check_attribute(module, key, value)
    # Everything is checked: from here on nothing fails, so a refused entry leaves the model as it was.
    for name, tensor, kept in work:
        new = _cut(tensor, kept, slices)
        for slot in places.together[name]:
            setattr(*slot, new)
    for module, key, value in attributes:
        # JSON knows no tuples; a list stays one, for programs add to it what they would not add to a tuple.
        as_list = isinstance(getattr(module, key), list)
        setattr(module, key, value if isinstance(value, int) else list(value) if as_list else tuple(value))


def _part(entry: dict[str, Any], key: str, kind: type[Any]) -> Any:
    """What `entry` has at `key`, an empty `kind` where it has nothing."""
    value = entry.get(key, kind())
    if not isinstance(value, list | tuple if kind is list else kind):
        raise ValueError(f"{key!r} in a plan must be a {kind.__name__}, got {value!r:.80}")
    return value


def _places(name: str, tensor: Tensor, dim: Any, indices: Any, looked_at: dict[tuple[int, int], Tensor]) -> Tensor:
    """The kept `indices` of `tensor`; `looked_at` are those that were found sound, by identity and size."""
    if not str(dim).isdigit() or int(dim) >= tensor.ndim:
        raise ValueError(f"the plan narrows dimension {dim!r} of {name!r}, which has {tensor.ndim} dimensions")
    size = tensor.shape[int(dim)]
    if (id(indices), size) in looked_at:
        return looked_at[id(indices), size]
    whole = isinstance(indices, list) and set(map(type, indices)) <= {int}
    if not whole or not indices or len(set(indices)) != len(indices):
        raise ValueError(f"kept indices of {name!r}, dimension {dim}, must be a non-empty list of distinct integers")
    if min(indices) < 0 or max(indices) >= size:
        wrong = min(indices) if min(indices) < 0 else max(indices)
        raise ValueError(
            f"the plan keeps index {wrong} of dimension {dim} of {name!r}, but its shape is {tuple(tensor.shape)}; "
            "give the model that the plan was made for"
        )
    return looked_at.setdefault((id(indices), size), torch.tensor(indices))


def _cut(tensor: Tensor, kept: dict[int, Tensor], slices: Slices | None) -> Tensor:
    """What is left of `tensor`, from `slices` where it is known."""
    key = id(tensor), tuple((dim, places.numpy().tobytes()) for dim, places in kept.items())
    if slices is not None and key in slices:
        return slices[key][1]
    value = tensor.detach()
    for dim, places in kept.items():
        value = value.index_select(dim, places.to(value.device))
    value = laid_out_as(tensor, value)
    if not isinstance(tensor, nn.Parameter):
        return value
    # A new Parameter, for autograd may still hold the old one's accumulator with the old shape.
    new = nn.Parameter(value, requires_grad=tensor.requires_grad)
    if slices is not None:
        slices[key] = tensor, new
    return new


def _check_attribute(module: nn.Module, key: str, value: Any) -> None:
    old = getattr(module, key, None)
    fits = type(value) is int or (isinstance(value, list | tuple) and all(type(item) is int for item in value))
    if not fits or not isinstance(old, int | tuple | list) or isinstance(old, bool):
        raise ValueError(
            f"the plan sets {type(module).__name__}.{key} from {old!r} to {value!r}; only sizes (integers and tuples "
            "of integers) may be set"
        )


def laid_out_as(old: Tensor, new: Tensor) -> Tensor:
    for layout in (torch.channels_last, torch.channels_last_3d):
        fits = old.ndim == (4 if layout is torch.channels_last else 5)
        # Tensors of one channel or one pixel are contiguous in every format at once: they keep the plain one.
        if fits and not old.is_contiguous() and old.is_contiguous(memory_format=layout):
            return new.contiguous(memory_format=layout)
    return new.contiguous()


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"the plan names module {name!r}, which {type(model).__name__} does not have") from error


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    yield from module.named_buffers(recurse=False, remove_duplicate=False)


def named_slots(model: nn.Module) -> Iterator[tuple[str, Slot]]:
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key, _ in _own_tensors(module):
            yield (f"{prefix}.{key}" if prefix else key), (module, key)
