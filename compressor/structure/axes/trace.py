"""The axes of every parameter and buffer of a model, kept while every operator of its calls is watched."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compressor.batches import Inputs
from compressor.outputs.returned import returned_tensors
from compressor.structure.axes.axis import Axis, IrreconcilableError, atoms, lock
from compressor.structure.axes.calls import Call, Dims, tensors_in, user_frames, user_line, user_place
from compressor.structure.axes.decisions import Decisions, Steps, is_chance_or_count, looks_at_values
from compressor.structure.axes.insides import Insides
from compressor.structure.axes.read_out import ReadOut
from compressor.structure.axes.recurrent import RECURRENT, recurrent_dims
from compressor.structure.axes.rules import rule_of
from compressor.structure.axes.shapes_alone import shapes_of
from compressor.structure.axes.views import permutation, unreadable
from compressor.structure.axes.whole_calls import WholeCalls
from compressor.structure.calling.clues import numbers_near
from compressor.structure.calling.coverage import unwatched
from compressor.structure.tensor_ids import tensors_of

_MARK = "_axes_known"  # what is known of a tensor travels with it
_PERMUTING = {"permute", "transpose", "t"}
_REARRANGING = {
    *_PERMUTING,
    "detach",
    "alias",
    "_to_copy",
    "clone",
    "split",
    "split_with_sizes",
    "slice",
    "unsafe_split",
}
_REARRANGING |= {"mul", "div", "neg", "roll", "flip", "contiguous"}
_CUTTING = {"slice", "select", "narrow"}
# Operators that look rows up in their first argument.
_TABLES = {"embedding", "_embedding_bag", "_embedding_bag_forward_only"}
_NORMS = (nn.modules.instancenorm._InstanceNorm, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)  # noqa: SLF001 - no public names
OUTPUT = "it makes the model's output"


@dataclass(frozen=True)
class Known:
    """What is known of a tensor: its axes, whether it depends on the input, and what it is a view of.

    `valued`: it depends on weights or on real-valued inputs. `source` is the parameter and which of its dimensions each
    dimension is, None where a view regrouped them.
    """

    dims: Dims
    computed: bool
    valued: bool = False
    source: tuple[int, tuple[int, ...] | None] | None = None


@dataclass(kw_only=True)
class Trace:
    """The axes of a model. `dims` and `made` are by tensor name and by (name, dimension); `used` are the names reached.

    `counts` are the attributes that give the size of an axis, by module name; `unknown` the operators without a rule;
    `tables` the weights of embeddings; `branches` the places where the program looked at a value, or the number of
    values, that was computed from weights or real-valued inputs. `seen` are the axes of everything computed, and
    `insides` says in which modules. `unreached` says of each layer that no call reached why it is a danger; `more` are
    batches that reached some; `paths` are those that no example takes, `training_paths` no training step;
    `trains_alike`: training runs the same operators, but for draws and statistics.
    """

    dims: dict[str, Dims] = field(default_factory=dict)
    made: set[tuple[str, int]] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    counts: dict[tuple[str, str], Axis] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    tables: set[str] = field(default_factory=set)
    branches: list[str] = field(default_factory=list)
    seen: dict[tuple[int, ...], Dims] = field(default_factory=dict)
    insides: Insides = field(default_factory=Insides)
    unreached: dict[str, str] = field(default_factory=dict)
    more: list[Inputs] = field(default_factory=list)
    paths: list[Steps] = field(default_factory=list)
    training_paths: list[Steps] = field(default_factory=list)
    trains_alike: bool = False


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its hook for subclasses untyped
    """Keeps the axes of every tensor while a model runs."""

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.trace = trace
        self.met: set[int] = set()
        self.operators: list[Any] = []
        self.decisions = Decisions()
        self._cut: dict[tuple[Any, ...], tuple[str, dict[Axis, None]]] = {}
        self.shapes_only = False
        self.count, self.limit = 0, 0
        self._muted = 0
        self._parameters: dict[int, Known] = {}
        self._names: dict[int, list[str]] = {}
        self._owners: dict[str, str] = {}
        self._regrouped: list[tuple[int, Axis]] = []
        self._keep: list[Tensor] = []
        self._by_place: dict[tuple[int, tuple[int, ...]], int] = {}
        for name, tensor in tensors_of(model).items():
            if id(tensor) not in self._parameters:
                dims = [Axis(size) for size in tensor.shape]
                self._parameters[id(tensor)] = Known(
                    dims, computed=False, source=(id(tensor), tuple(range(tensor.ndim)))
                )
                self._place(tensor)
            trace.dims[name] = self._parameters[id(tensor)].dims
            self._names.setdefault(id(tensor), []).append(name)

    def add_copy(self, model: nn.Module, other: nn.Module) -> None:
        """Says that the tensors of `other`, which runs next, are those of `model`."""
        ours, theirs = tensors_of(model), tensors_of(other)
        self.shapes_only = any(tensor.is_meta for tensor in theirs.values())
        self.met, self.operators, self.count, self._muted = set(), [], 0, 0
        self.decisions.begin()
        self.trace.insides.begin()
        for name, tensor in theirs.items():
            if id(tensor) not in self._parameters:
                self._parameters[id(tensor)] = self._parameters[id(ours[name])]
                self._place(tensor)

    def _place(self, tensor: Tensor) -> None:
        # Alive, so that no other gets its identity.
        self._keep.append(tensor)
        if tensor.numel() and not tensor.is_meta:
            self._by_place[tensor.data_ptr(), tuple(tensor.shape)] = id(tensor)

    def names_of(self, numbers: set[int]) -> list[str]:
        """The names of tensors that were met, in order."""
        return [name for number, names in self._names.items() if number in numbers for name in names]

    def know(self, tensor: Tensor, dims: Dims) -> None:
        """Says what the axes of an input are."""
        self._keep.append(tensor)
        # Tokens and masks say what is there; branching on them is the ordinary way to save work.
        self._parameters[id(tensor)] = Known(dims, computed=True, valued=tensor.is_floating_point())

    def _known(self, tensor: Tensor) -> Known:
        known = self._parameters.get(id(tensor)) or vars(tensor).get(_MARK)
        if known is None and self.shapes_only and tensor.ndim:
            raise LookupError("without numbers, a tensor that no operator made is not to be told from a parameter")
        if known is None and tensor.numel():
            known = self._parameters.get(self._by_place.get((tensor.data_ptr(), tuple(tensor.shape)), 0))
        if known is None:
            reason = "it meets a constant that is no parameter or buffer"
            known = Known([Axis(size, reason) for size in tensor.shape], computed=False)
            vars(tensor)[_MARK] = known
        if known.source is not None:
            self.met.add(known.source[0])
        return known

    def dims_of(self, tensor: Tensor) -> Dims:
        return self._known(tensor).dims

    def _made_by(self, tensor: Tensor, dim: int) -> None:
        known = self._known(tensor)
        if known.source is None:
            return
        number, order = known.source
        if order is None:
            self._regrouped.append((number, known.dims[dim]))
        else:
            self.trace.made |= {(name, order[dim]) for name in self._names.get(number, ())}

    def lock_cut(self, key: tuple[Any, ...]) -> None:
        """Locks what an operator, with its line, cuts or picks from: which positions follows the sizes of inputs."""
        line, axes = self._cut.get(key, ("", {}))
        for axis in axes:
            lock(axis, f"which of its positions are taken follows the sizes of the inputs{line}")

    def outputs(self, raw: Any) -> None:
        """Says that `raw` is what the model hands back; caches for the next call are left out."""
        for tensor in returned_tensors(raw):
            for axis in self.dims_of(tensor):
                lock(axis, OUTPUT, override=True)

    def finish(self, reached: set[int]) -> Trace:
        """Completes the trace: what was `reached`, and which weights made outputs through views that regrouped them."""
        for number, axis in self._regrouped:
            wanted = {atom for atom, _, _ in atoms(axis)}
            for name in self._names.get(number, ()):
                dims = self.trace.dims[name]
                fit = [dim for dim, other in enumerate(dims) if wanted & {atom for atom, _, _ in atoms(other)}]
                self.trace.made |= {(name, dim) for dim in fit[:1]}
        self.trace.used = {name for number in reached for name in self._names.get(number, ())}
        return self.trace

    def _counts(self, tensor: Tensor, attribute: str, axis: Axis) -> None:
        source = self._known(tensor).source
        for name in self._names.get(source[0], ()) if source else ():
            self.trace.counts[name.rpartition(".")[0], attribute] = axis

    @unwatched
    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.count += 1
        if self.limit and self.count > self.limit:
            raise RecursionError(f"a path that was forced upon the program does not end{user_line()}")
        if not self.shapes_only:
            result = function(*args, **kwargs)
            if looks_at_values(function, args):
                result = self._looked(function, args, kwargs, result)
        else:
            result = shapes_of(function, args, kwargs)
        if not self._muted:
            self._record(function, args, kwargs, result)
        return result

    def _looked(self, function: Any, args: Any, kwargs: Any, result: Any) -> Any:
        """What an operator that looks at values is to give, noted where the values were computed."""
        known = [self._known(tensor) for tensor in tensors_in([args, kwargs])]
        computed = any(item.computed for item in known)
        line = user_line()
        if computed and any(item.valued for item in known):
            self.trace.branches.append(line)
        # Which constant is read may have been decided before.
        clues = (lambda: numbers_near(user_frames())) if computed or self.decisions.any else None
        return self.decisions.taken(line, function, args, kwargs, result, clues=clues)

    def _record(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        outputs = tuple(tensors_in([result]))
        if not outputs:
            return
        key = str(function), user_place()
        if not is_chance_or_count(function, outputs):
            self.operators.append(key)
        schema = function._schema  # noqa: SLF001 - torch has no public name for it
        names = [argument.name for argument in schema.arguments]
        arguments = {argument.name: argument.default_value for argument in schema.arguments}
        arguments |= dict(zip(names, args, strict=False)) | kwargs
        name = schema.name.partition("::")[2]
        name = name if name.endswith("__") else name.rstrip("_")
        if name in _TABLES:
            table = self._known(args[0]).source
            self.trace.tables.update(self._names.get(table[0], ()) if table and table[1] == (0, 1) else ())
        call = Call(
            name=name,
            function=str(function),
            arguments=arguments,
            outputs=outputs,
            dims_of=self.dims_of,
            computed=lambda tensor: self._known(tensor).computed,
            made_by=self._made_by,
            counts=self._counts,
        )
        given = [self._known(tensor) for tensor in call.tensors()]
        if name in _CUTTING:
            dims = call.dims("self")
            self._cut.setdefault(key, (user_line(), {}))[1].setdefault(dims[call["dim"] % len(dims)])
        rule = rule_of(name, function)
        if rule is None or (0 in outputs[0].shape and rule_of("view", function) is rule):
            if rule is None:
                self.trace.unknown.add(str(function))
            found = unreadable(call)
        else:
            try:
                found = rule(call)
            except IrreconcilableError as error:
                reason = f"{error}{user_line()}"
                for known in given:
                    for axis in known.dims:
                        lock(axis, reason)
                found = [[Axis(size, reason) for size in tensor.shape] for tensor in outputs]
        every = found if found and isinstance(found[0], list) else [found]
        if [[axis.size for axis in dims] for dims in every] != [list(tensor.shape) for tensor in outputs]:
            self.trace.unknown.add(str(function))
            every = unreadable(call)
        computed = any(known.computed for known in given)
        sources = [known.source for known in given if known.source is not None]
        source: tuple[int, tuple[int, ...] | None] | None = None
        if sources and not computed:
            number, order = sources[0]
            if order is None or len(given) > 1 or name not in _REARRANGING:
                source = number, None
            else:
                source = number, tuple(order[dim] for dim in permutation(call)) if name in _PERMUTING else order
        for tensor, dims in zip(outputs, every, strict=True):
            self.trace.seen[tuple(map(id, dims))] = dims
            self.trace.insides.add(dims)
            if id(tensor) not in self._parameters:
                valued = any(known.valued or (known.source is not None and computed) for known in given)
                vars(tensor)[_MARK] = Known(dims, computed, valued, source)

    @contextmanager
    def hooks(self, model: nn.Module) -> Iterator[None]:
        """`model` with hooks that take over for recurrent layers, whose kernels are one operator for many weights."""
        whole = WholeCalls(self.whole, lambda tensor: self._known(tensor).computed, shapes_only=self.shapes_only)
        with whole, ReadOut(), self._layers(model):
            yield

    def whole(self, operator: Any, function: Any, args: Any, kwargs: Any) -> Any:
        """What `function` gives, noted as one call of `operator`, whatever it consists of."""
        self._muted += 1
        try:
            result = function(*args, **kwargs)
        finally:
            self._muted -= 1
        if not self._muted:
            self._record(operator, args, kwargs, result)
        return result

    @contextmanager
    def _layers(self, model: nn.Module) -> Iterator[None]:
        handles = []
        for name, module in model.named_modules():
            if type(module).__module__.partition(".")[0] != "torch":
                handles.append(module.register_forward_pre_hook(self._enters(name), with_kwargs=True))
                handles.append(module.register_forward_hook(self._leaves(name), always_call=True))
            if isinstance(module, RECURRENT):
                handles.append(module.register_forward_pre_hook(self._mute))
                handles.append(module.register_forward_hook(self._recurrent(name), with_kwargs=True))
            elif isinstance(module, _NORMS):
                handles.append(module.register_forward_pre_hook(self._channels(name)))
            handles.append(module.register_forward_hook(self._gives(name)))
            if module._backward_hooks and module.training:  # noqa: SLF001 - torch has no public name for it
                handles.append(module.register_forward_hook(_call_backward_hooks))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enters(self, name: str) -> Any:
        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.trace.insides.enter(name, module, args, kwargs, self.dims_in([args, kwargs]))

        return note

    def _leaves(self, name: str) -> Any:
        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            self.trace.insides.leave(name, self.dims_in([output]))

        return note

    def _gives(self, name: str) -> Any:
        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            self.trace.insides.gives(name, self.dims_in([output]))

        return note

    def dims_in(self, values: Any) -> list[Dims]:
        """The axes of the tensors among `values` of which they are known."""
        every = [self._parameters.get(id(tensor)) or vars(tensor).get(_MARK) for tensor in tensors_in(values)]
        return [known.dims for known in every if known is not None]

    def _mute(self, _module: nn.Module, _args: Any) -> None:
        self._muted += 1

    def _channels(self, name: str) -> Any:
        def note(module: nn.Module, args: Any) -> None:
            dims = self.dims_of(args[0])
            for attribute in ("num_features", "num_channels", "num_groups"):
                # As many groups as channels are groups of one.
                if len(dims) > 1 and dims[1].size == getattr(module, attribute, None):
                    self.trace.counts[name, attribute] = dims[1]

        return note

    def _recurrent(self, name: str) -> Any:
        def take(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._muted -= 1
            if self._muted:
                return
            values = (*args, *kwargs.values())
            try:
                found = recurrent_dims(module, self.dims_of, values, output)
                for tensor, dims in found:
                    vars(tensor)[_MARK] = Known(dims, computed=True, valued=True)
                    self.trace.insides.add(dims)
            except IrreconcilableError as error:
                reason = f"{error} in {name}"
                for tensor in (*tensors_in(values), *module.parameters()):
                    for axis in self.dims_of(tensor):
                        lock(axis, reason)
            for key, tensor in module.named_parameters(recurse=False):
                if "weight_" in key:
                    self._made_by(tensor, 0)

        return take


def _call_backward_hooks(module: nn.Module, args: Any, output: Any) -> None:
    """Gives the hooks for gradients, which are not computed, some of the same axes."""
    given, made = (
        tuple(torch.zeros_like(tensor) for tensor in tensors_in([values]) if tensor.is_floating_point())
        for values in (args, output)
    )
    for hook in module._backward_hooks.values():  # noqa: SLF001 - as above
        hook(module, given, made)
