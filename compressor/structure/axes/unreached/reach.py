"""What no call of a model reaches, and the widths that it could read or make all the same."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from math import prod

import torch
from torch import Tensor, nn

from compressor.structure.axes.axis import Axis, leaves, lock
from compressor.structure.axes.trace import Trace
from compressor.structure.axes.unreached.arguments import handed_on
from compressor.structure.axes.unreached.handing import hands_over
from compressor.structure.axes.unreached.other_methods import takes_pieces
from compressor.structure.axes.unreached.readers import readers_of
from compressor.structure.source_lines import mention_line
from compressor.structure.tensor_ids import tensors_of

# What leads to a tensor beyond the examples, "{}" for its layer, and the axes that it meets there.
Beyond = tuple[str, Sequence[Axis]]

_CONVOLUTIONS = nn.modules.conv._ConvNd  # noqa: SLF001 - no public name
_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_WAY_OUT = "give inputs that reach it as other_inputs of the Workload"


def lock_what_is_not_reached(
    model: nn.Module, trace: Trace, explored: Mapping[str, Beyond], untrained: str | None
) -> None:
    """Locks every width that a layer which no call reached could read or make, and tells it in `trace.unreached`.

    `explored` are the tensors that paths beyond the examples met, by name: such a layer locks what it met there. Any
    other one locks whatever fits one of its sizes: as it is, flattened, or together with another width in a
    concatenation. A tensor that is no layer's can do so only in the hands of those who read it; one of integers could
    be the positions that it looks up there. `untrained` is why training was not traced.
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
            hit = [*widths.fitting(_sizes(model, layer, names)), *_wider(model, trace, widths, layer)]
            if layer in tensors_of(model):
                hit = _in_reach(model, trace, widths, layer, hit)
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


def _wider(model: nn.Module, trace: Trace, widths: "_Widths", layer: str) -> list[Axis]:
    """The atoms of what is wider than an unread layer reads, where no width is its own and its code takes pieces."""
    tensors = tensors_of(model)
    module = None if layer in tensors else model.get_submodule(layer)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2 or isinstance(module, nn.Embedding):
        return []
    size = getattr(module, "in_channels", weight.shape[1])
    # The first dimension counts samples, of a training step others than of the example.
    every = [*(dims[1:] for dims in trace.seen.values()), *(trace.dims[name] for name in trace.used)]
    if any(axis.size == size for dims in every for axis in dims):
        return []
    pieces = takes_pieces(model, layer.rpartition(".")[2])
    return [atom for atom, known in widths.free.items() if max(known) > size] if pieces else []


def _layers_not_reached(model: nn.Module, trace: Trace) -> dict[str, list[str]]:
    """The tensors that no call reached, by layer, or alone where the layer has others or ran without them."""
    found: dict[str, list[str]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    partly = {name for name, module in modules.items() if isinstance(module, nn.ParameterList | nn.ParameterDict)}
    for name, tensor in tensors_of(model).items():
        module = name.rpartition(".")[0]
        if name in trace.used or trace.insides.called(module):
            partly.add(module)
        if name not in trace.used and tensor.numel() > 1:
            found.setdefault(module, []).append(name)
    return {
        layer: tensors
        for module, names in found.items()
        for layer, tensors in (
            [(name, [name]) for name in names] if module in partly or not module else [(module, names)]
        )
    }


def _in_reach(model: nn.Module, trace: Trace, widths: "_Widths", name: str, fitting: Iterable[Axis]) -> list[Axis]:
    """Those of the `fitting` atoms, and of those that it could look up, that the readers of a tensor ever meet."""
    tensor = tensors_of(model)[name]
    readers = readers_of(model, *_owner(model, name))
    met = set(widths.free)
    if readers is not None and all(map(trace.insides.called, readers.modules)):
        met = _met(model, trace, widths, readers.modules, name)
    looked_up = set[Axis]()
    if tensor.dtype in _INTEGERS and (readers is None or readers.found):
        looked_up = {atom for atom in met if max(widths.free.get(atom, ()), default=0) > int(tensor.max())}
    return [atom for atom in dict.fromkeys([*fitting, *looked_up]) if atom in met]


def _owner(model: nn.Module, name: str) -> tuple[str, str]:
    """The module of the user's own whose attribute the tensor `name` hangs on, and that attribute."""
    modules = dict(model.named_modules(remove_duplicate=False))
    first = {id(module): known for known, module in model.named_modules()}
    owner, _, key = name.rpartition(".")
    while owner and type(modules[owner]).__module__.partition(".")[0] == "torch":
        owner, _, key = owner.rpartition(".")
    return first[id(modules[owner])], key


def _met(model: nn.Module, trace: Trace, widths: "_Widths", readers: Collection[str], name: str) -> set[Axis]:
    """The atoms of all that one of the `readers` of a tensor has in its hands, and of what its callers could give it.

    What runs in a member of a reader counts where the tensor could be handed to it as an argument that it was never
    given: where it takes the place of one that was, it meets what that does.
    """
    modules = dict(model.named_modules())
    owner, key = _owner(model, name)
    every = list[Sequence[Axis]]()
    for reader in readers:
        every += [*trace.insides.held(reader), *_own_layers(trace, modules, reader)]
        for member in (inner for inner in modules if reader in trace.insides.callers(inner)):
            own = member.removeprefix(f"{reader}.") if reader else member
            absent = trace.insides.never_given(member, modules[member])
            if reader != owner or hands_over(modules[reader], own, absent, key):
                every += [*trace.insides.met(member), *_within(trace, member)]
    names = {id(module): name for name, module in modules.items()}
    kept = {names[id(kept)] for reader in readers for kept in _kept(modules[reader]) if id(kept) in names}
    called = {one for one in kept for reader in readers if reader in trace.insides.callers(one)}
    every += [dims for one in kept - called for dims in _within(trace, one)]
    for holder in _holders(trace, modules, readers):
        every += [*trace.insides.held(holder), *_own_layers(trace, modules, holder)]
    return {atom for dims in every for axis in dims for atom in widths.atoms(axis)}


def _holders(trace: Trace, modules: Mapping[str, nn.Module], readers: Collection[str]) -> set[str]:
    """The modules whose code could give `readers` what they were never given."""
    rest = [(name, *absent) for name in readers for absent in trace.insides.never_given(name, modules[name])]
    seen, holders = set(rest), set[str]()
    while rest:
        name, place, parameter = rest.pop()
        for caller in trace.insides.callers(name):
            absent = {key: (caller, number, key) for number, key in trace.insides.never_given(caller, modules[caller])}
            handed = handed_on(modules[caller], name.rpartition(".")[2], parameter, place)
            if handed is None or handed - set(absent):
                holders.add(caller)
                handed = set(absent)
            fresh = {absent[key] for key in handed} - seen
            seen |= fresh
            rest += fresh
    return holders


def _kept(module: nn.Module) -> Iterator[nn.Module]:
    """The modules in the attributes of `module`, alone and in containers, its own members or not."""
    for value in vars(module).values():
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        yield from (item for item in items if isinstance(item, nn.Module))


def _within(trace: Trace, name: str) -> list[Sequence[Axis]]:
    """The axes of all tensors of the module `name`."""
    return [dims for key, dims in trace.dims.items() if key.startswith(f"{name}.")]


def _own_layers(trace: Trace, modules: Mapping[str, nn.Module], owner: str) -> list[list[Axis]]:
    """The axes of the tensors of the module `owner` that are not in the hands of another module that ran."""
    prefix = f"{owner}." if owner else ""
    inner = [f"{name}." for name in modules if name.startswith(prefix) and name != owner and trace.insides.called(name)]
    return [
        dims for name, dims in trace.dims.items() if name.startswith(prefix) and not any(map(name.startswith, inner))
    ]


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
