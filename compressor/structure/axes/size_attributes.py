"""The attributes in which modules keep their sizes: exact for known layers, guessed and then tried for all others."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from compressor.structure.attention import NarrowAttention
from compressor.structure.axes.axis import Axis, Mask, factors, kept, product, signature
from compressor.structure.axes.rules import head_count
from compressor.structure.axes.trace import Trace

# (attribute, parameter, dimension) of layers whose weights say exactly what the attribute is.
_EXACT: tuple[tuple[type[nn.Module], tuple[tuple[str, str, int], ...]], ...] = (
    (nn.Linear, (("in_features", "weight", 1), ("out_features", "weight", 0))),
    (nn.Bilinear, (("in1_features", "weight", 1), ("in2_features", "weight", 2), ("out_features", "weight", 0))),
    (nn.Embedding, (("num_embeddings", "weight", 0), ("embedding_dim", "weight", 1))),
    (nn.modules.batchnorm._BatchNorm, (("num_features", "weight", 0),)),  # noqa: SLF001 - no public name
    (nn.modules.instancenorm._InstanceNorm, (("num_features", "weight", 0),)),  # noqa: SLF001 - as above
    (nn.GroupNorm, (("num_channels", "weight", 0),)),
    (nn.PReLU, (("num_parameters", "weight", 0),)),
    (
        nn.RNNBase,
        (("input_size", "weight_ih_l0", 1), ("proj_size", "weight_hr_l0", 0), ("hidden_size", "weight_hr_l0", 1)),
    ),
    (nn.RNNCellBase, (("input_size", "weight_ih", 1), ("hidden_size", "weight_hh", 1))),
)
_HEADS = re.compile(r"head|split_size|inner_dim")
# Of the axes that have one size, so many are tried.
_ALIKE = 3


@dataclass(frozen=True)
class Choice:
    """An attribute of a module that gives the size of an axis; `place` is where in a tuple, -1 for an integer.

    `rank` says which one it is of the axes that have this size, and `likely` whether that is a dimension of a weight.
    """

    module: str
    attribute: str
    axis: Axis
    old: Any
    place: int = -1
    rank: int = 0
    likely: bool = True

    @property
    def key(self) -> tuple[str, str, int]:
        """What it sets: a value cannot follow two axes."""
        return self.module, self.attribute, self.place

    def value(self, now: Any, removed: dict[Axis, Mask]) -> Any:
        """The attribute, `now` so far, once `removed` of the atoms went."""
        size = int(kept(self.axis, removed).sum())
        return size if self.place < 0 else (*now[: self.place], size, *now[self.place + 1 :])


def exact_attributes(model: nn.Module, trace: Trace) -> tuple[Choice, ...]:
    """The attributes of known layers."""
    found: dict[tuple[str, str], Choice] = {}

    def add(name: str, module: nn.Module, attribute: str, axis: Axis) -> None:
        old = getattr(module, attribute, None)
        if type(old) is int and old == axis.size:
            found.setdefault((name, attribute), Choice(name, attribute, axis.root, old))

    modules = dict(model.named_modules(remove_duplicate=False))
    for (name, attribute), axis in trace.counts.items():
        if name in modules:
            add(name, modules[name], attribute, axis)
    for name, module in modules.items():
        prefix = f"{name}." if name else ""
        dims = {key: trace.dims[prefix + key] for key, _ in module.named_parameters(recurse=False)}
        for kind, attributes in _EXACT:
            if isinstance(module, kind):
                for attribute, key, dim in attributes:
                    if key in dims:
                        add(name, module, attribute, dims[key][dim])
        if isinstance(module, nn.RNNBase) and "weight_hr_l0" not in dims:
            add(name, module, "hidden_size", dims["weight_hh_l0"][1])
        if type(module).__name__ == "Conv1D" and {"nf", "nx"} <= set(vars(module)):  # that of transformers
            add(name, module, "nx", dims["weight"][0])
            add(name, module, "nf", dims["weight"][1])
        if isinstance(module, NarrowAttention):
            # The projection is a layer, or a chain of two, where it was made one.
            rows = [axes[0] for key, axes in dims.items() if key.endswith("proj_weight")]
            rows += [trace.dims[key][0] for end in ("", ".1") if (key := f"{prefix}in_proj{end}.weight") in trace.dims]
            heads = head_count(rows[0])
            if heads is not None:
                add(name, module, "num_heads", heads)
    return tuple(found.values())


def candidates(
    modules: dict[str, nn.Module], parts: Iterable[str], axes: Iterable[Axis], computed: Iterable[Axis], atom: Axis
) -> list[Choice]:
    """The attributes of the user's own modules, owning or enclosing `parts`, that may give a size made of `atom`.

    `axes` are dimensions of weights, `computed` of what is made with them. Several axes of one size are several
    choices, in this order.
    """
    sizes: dict[int, list[tuple[Axis, bool]]] = {}
    alike = set[tuple[object, ...]]()
    of_weights = [atom, *(inner for axis in axes for inner in _nodes(axis, atom))]
    for number, node in enumerate([*of_weights, *(inner for axis in computed for inner in _nodes(axis, atom))]):
        if (mark := signature(node)) not in alike:
            alike.add(mark)
            sizes.setdefault(node.size, []).append((node.root, number < len(of_weights)))
    owners: dict[str, None] = {}
    for part in parts:
        name = part
        while name:
            owners[name] = None
            name = name.rpartition(".")[0]
        owners[""] = None
    found = []
    for name in owners:
        module = modules[name]
        if type(module).__module__.partition(".")[0] == "torch" or isinstance(module, NarrowAttention):
            continue
        for attribute, value in vars(module).items():
            if type(value) is int:
                places = [(-1, value)]
            elif isinstance(value, tuple | list) and all(type(item) is int for item in value):
                places = list(enumerate(value))
            else:
                continue
            old = tuple(value) if isinstance(value, list) else value
            found += [
                Choice(name, attribute, axis, old, place, rank, likely)
                for place, size in places
                if size > 1
                for rank, (axis, likely) in enumerate(sizes.get(size, ())[:_ALIKE])
            ]
    return found


def _nodes(axis: Axis, atom: Axis) -> Iterator[Axis]:
    """Every axis inside `axis` that is made of `atom`."""
    top = axis.root
    if _holds(top, atom):
        yield top
        for part in top.parts:
            yield from _nodes(part, atom)
        inner = factors(top)
        if len(inner) > 1:
            for start in range(len(inner)):
                for stop in range(start + 1, len(inner)):
                    tail = inner[start : stop + 1]
                    if atom in tail:
                        yield product(tail)


def _holds(axis: Axis, atom: Axis) -> bool:
    top = axis.root
    return top is atom or any(_holds(part, atom) for part in top.parts)


def by_name(choices: Iterable[Choice], role: str) -> list[Choice]:
    """Those whose names say that they count what a group of `role` is made of."""
    heads = [choice for choice in choices if role == "heads" and choice.likely and _HEADS.search(choice.attribute)]
    return first_of_each(heads)


def first_of_each(choices: Iterable[Choice]) -> list[Choice]:
    """One choice for every value that is set, the first."""
    found: dict[tuple[str, str, int], Choice] = {}
    for choice in choices:
        found.setdefault(choice.key, choice)
    return list(found.values())


def key_of(choice: Choice, modules: dict[str, nn.Module]) -> tuple[str, str, int, int]:
    """The same for the same attribute of every module of one class."""
    kind = type(modules[choice.module])
    return f"{kind.__module__}.{kind.__qualname__}", choice.attribute, choice.place, choice.rank
