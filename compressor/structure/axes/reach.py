"""What no call of a model reaches, and the widths that it could read or make all the same."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import prod

from torch import nn

from compressor.structure.axes.axis import Axis, leaves, lock
from compressor.structure.axes.trace import Trace
from compressor.structure.source_lines import mention_line
from compressor.structure.tensor_ids import tensors_of

# What leads to a tensor beyond the examples, "{}" for its layer, and the axes that it meets there.
Beyond = tuple[str, Sequence[Axis]]

_CONVOLUTIONS = nn.modules.conv._ConvNd  # noqa: SLF001 - no public name
_WAY_OUT = "give inputs that reach it as other_inputs of the Workload"


def lock_what_is_not_reached(
    model: nn.Module, trace: Trace, explored: Mapping[str, Beyond], untrained: str | None
) -> None:
    """Locks every width that a layer which no call reached could read or make, and tells it in `trace.unreached`.

    `explored` are the tensors that paths beyond the examples met, by name: such a layer locks what it met there. Any
    other one locks whatever fits one of its sizes: as it is, flattened, or together with another width in a
    concatenation. `untrained` is why training was not traced.
    """
    layers = _layers_not_reached(model, trace)
    if not layers:
        return
    widths, locked = _Widths(model, trace), set[Axis]()
    for layer, names in layers.items():
        line = mention_line(model, layer)
        causes = [explored[name] for name in names if name in explored]
        if len(causes) == len(names):
            cause = causes[0][0]
            hit = [atom for _, axes in causes for axis in axes for atom in widths.atoms(axis)]
        else:
            cause = "{} is reached by no example, and could read or make it"
            hit = widths.fitting(_sizes(model, layer, names))
        cause += f" (training fails: {untrained})" if untrained is not None else ""
        place = f" ({line})" if line else ""
        fresh = [atom for atom in dict.fromkeys(hit) if atom.reason is None]
        locked |= {atom for atom in fresh if atom in widths.free}
        count = len(locked & {*hit})
        for atom in fresh:
            lock(atom, f"{cause.format((layer or type(model).__name__) + place)}; {_WAY_OUT}")
        what = f"{count} width{'s'[: count != 1]} that it could meet {'is' if count == 1 else 'are'} locked"
        known = what if count else "nothing that could go fits it"
        trace.unreached[layer] = f"danger: {cause.format('it' + place)}; {known}; {_WAY_OUT}"


def _layers_not_reached(model: nn.Module, trace: Trace) -> dict[str, list[str]]:
    """The tensors that no call reached, by layer, or alone where the layer has others that were reached."""
    found: dict[str, list[str]] = {}
    partly = set[str]()
    for name, tensor in tensors_of(model).items():
        module = name.rpartition(".")[0]
        if name in trace.used:
            partly.add(module)
        elif tensor.numel() > 1:
            found.setdefault(module, []).append(name)
    return {
        layer: tensors
        for module, names in found.items()
        for layer, tensors in (
            [(name, [name]) for name in names] if module in partly or not module else [(module, names)]
        )
    }


def _sizes(model: nn.Module, layer: str, names: Iterable[str]) -> tuple[set[int], set[int]]:
    """The sizes of what the layer may read or make, and those of them that may be a flattened map."""
    tensors = tensors_of(model)
    module = None if layer in tensors else model.get_submodule(layer)
    if isinstance(module, _CONVOLUTIONS):
        return {module.in_channels, module.out_channels}, set()
    if isinstance(module, nn.Embedding):
        return {module.embedding_dim}, set()
    sizes = {size for name in names for size in tensors[name].shape if size > 1}
    if isinstance(module, nn.RNNBase):
        sizes |= {module.hidden_size * (1 + module.bidirectional)}
    return sizes, {size for name in names if tensors[name].ndim > 1 for size in tensors[name].shape if size > 1}


class _Widths:
    """The unlocked atoms of what was reached, with the sizes at which they can be met."""

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        self._atoms: dict[Axis, set[Axis]] = {}
        self._lines: dict[int, list[set[Axis]]] = {}
        self.free: dict[Axis, set[int]] = {}
        self._maps = set[Axis]()
        convolutions = {name for name, module in model.named_modules() if isinstance(module, _CONVOLUTIONS)}
        for name in trace.used:
            dims = trace.dims[name][:2] if name.rpartition(".")[0] in convolutions else trace.dims[name]
            for axis in dims:
                self._add(axis, {axis.size})
                self._lines.setdefault(axis.size, []).append(self.atoms(axis))
        for dims in trace.seen.values():
            for number, axis in enumerate(dims):
                if axis.size > 1 and any(atom in self.free for atom in self.atoms(axis)):
                    others = [other.size for place, other in enumerate(dims) if place not in {0, number}]
                    flat = {
                        axis.size * prod(chosen)
                        for count in range(len(others) + 1)
                        for chosen in combinations(others, count)
                    }
                    self._add(axis, flat)
                    if number == 1 and others:
                        self._maps |= self.atoms(axis)

    def atoms(self, axis: Axis) -> set[Axis]:
        """The atoms that `axis` is made of."""
        top = axis.root
        if top not in self._atoms:
            self._atoms[top] = leaves(top)
        return self._atoms[top]

    def fitting(self, sizes: tuple[set[int], set[int]]) -> list[Axis]:
        """The atoms that tensors of these sizes could hold; of the second sizes, as flattened maps too."""
        wanted, flat = sizes
        return [
            atom
            for atom, known in self.free.items()
            if known & wanted
            or any(atom in self._maps and size % atom.size == 0 for size in flat)
            or any(self._beside(atom, size - one) for size in wanted for one in known if one < size - 1)
        ]

    def _beside(self, atom: Axis, size: int) -> bool:
        """Whether another width of `size` is there to be laid beside `atom`."""
        return any(atom not in other for other in self._lines.get(size, ()))

    def _add(self, axis: Axis, sizes: set[int]) -> None:
        for atom in self.atoms(axis):
            if atom.size > 1 and atom.reason is None:
                self.free.setdefault(atom, set()).update(sizes)
