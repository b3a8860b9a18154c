"""The groups of a model whose axes are known, and the plan entries that narrow them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from compressor.structure.axes.axis import (
    Axis,
    Mask,
    atoms,
    free_atoms,
    join,
    kept,
    lock,
    product,
    rival_atoms,
    signature,
)
from compressor.structure.axes.calls import STRUCTURAL
from compressor.structure.axes.size_attributes import Choice, exact_attributes
from compressor.structure.axes.trace import OUTPUT, Trace
from compressor.structure.couplings import Coupled, Part
from compressor.structure.plan import Entry
from compressor.structure.tensor_ids import Sizes, tensors_of

_CONVOLUTIONS = nn.modules.conv._ConvNd  # noqa: SLF001 - no public name
_NORMS = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 - as above


class AxisStructure:
    """The groups of `model` by the axes of `trace`, and what is left of its tensors when some of them are narrowed.

    `choices` are the sizes that modules of the user's own keep as attributes, by group; `settle` finds them. `instead`
    are, of axes that `keep_one_factor` locked, those that may go in their place.
    """

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()}
        self.dims = {name: tuple(axis.root for axis in dims) for name, dims in trace.dims.items()}
        self.choices: dict[str, tuple[Choice, ...]] = {}
        self.instead: dict[Axis, list[Axis]] = {}
        self._trace, self._modules = trace, dict(model.named_modules(remove_duplicate=False))
        # What was computed of each atom: programs keep the sizes of such dimensions, too.
        self.computed: dict[Axis, list[Axis]] = {}
        for whole in dict.fromkeys(axis.root for dims in trace.seen.values() for axis in dims):
            for atom in free_atoms(whole) if whole.parts else ():
                self.computed.setdefault(atom, []).append(whole)
        self._attributes = exact_attributes(model, trace)
        self._sized_by = self._by_atom()
        self.unreached = trace.unreached
        places: dict[Axis, list[tuple[str, int]]] = {}
        for name, dims in self.dims.items():
            if name in trace.used:
                for dim, axis in enumerate(dims):
                    for atom in dict.fromkeys(atom for atom, _, _ in atoms(axis)):
                        places.setdefault(atom, []).append((name, dim))
        self.places: dict[Coupled, list[tuple[str, int]]] = {}
        self.axes: dict[Coupled, Axis] = {}
        names = set[str]()
        for atom, where in places.items():
            if not any((name, dim) in trace.made for name, dim in where):
                tables = {(name, 1) for name in trace.tables} & set(where)
                trace.made |= tables if atom.reason is None else set()
            if not any((name, dim) in trace.made for name, dim in where):
                # Nothing that is pruned for its own sake makes it: vocabulary, positions, kernels.
                if atom.reason is None:
                    lock(atom, "no layer makes it")
                continue
            if atom.reason is not None and atom.reason.startswith(STRUCTURAL):
                continue
            group = self._group(atom, where, names)
            names.add(group.name)
            self.places[group], self.axes[group] = where, atom
        self._add_counters(names)

    def _add_counters(self, names: set[str]) -> None:
        """Adds, locked, what layers make that falls into nothing but counters, so that nobody misses those layers."""
        covered = {place for where in self.places.values() for place in where}
        counters: dict[Axis, list[tuple[str, int]]] = {}
        for name, dims in self.dims.items():
            for dim, axis in enumerate(dims):
                reasons = [atom.reason or "" for atom, _, _ in atoms(axis)]
                counts = bool(reasons) and all(reason.startswith(STRUCTURAL[0]) for reason in reasons)
                if counts and name in self._trace.used and (name, dim) in self._trace.made - covered:
                    counters.setdefault(axis, []).append((name, dim))
        for axis, where in counters.items():
            line = tuple(range(axis.size))
            parts = tuple(
                Part(
                    module=name.rpartition(".")[0],
                    tensors=((name, dim),),
                    indices=line,
                    channels=line,
                    makes=True,
                    is_norm=False,
                )
                for name, dim in where
            )
            if (parts[0].module or parts[0].tensors[0][0]) not in names:
                group = Coupled(
                    name=parts[0].module or parts[0].tensors[0][0],
                    width=axis.size,
                    parts=parts,
                    makes_output=False,
                    opaque=False,
                    kind=_kind(parts, self._modules),
                    locked="splits and views leave no part of it that could go alone",
                )
                names.add(group.name)
                self.places[group], self.axes[group] = where, axis

    def _group(self, atom: Axis, where: list[tuple[str, int]], names: set[str]) -> Coupled:
        """The group of `atom`, which occurs at the tensor dimensions `where`, under a name that is not in `names`."""
        parts = self._parts(atom, where)
        # A parameter of the model itself belongs to no layer: its own name is the one that tells.
        first = next(part.module or part.tensors[0][0] for part in parts if part.makes)
        name, number = first, 2
        while name in names:
            name, number = f"{first}#{number}", number + 1
        return Coupled(
            name=name,
            width=atom.size,
            parts=parts,
            makes_output=atom.reason == OUTPUT,
            opaque=False,
            kind=atom.role or _kind(parts, self._modules),
            locked=atom.reason,
        )

    @property
    def groups(self) -> tuple[Coupled, ...]:
        """Every group, in the order of the tensors."""
        return tuple(self.places)

    def link(self, groups: Sequence[Coupled], steps: int) -> Coupled:
        """One group of `steps` (> 1, a divisor of every width) indices in the place of `groups`.

        Each of its indices is as many neighbouring ones of every group as keep the proportions of their widths.
        """
        unit = Axis(steps)
        for group in groups:
            join(self.axes[group], product([unit, Axis(group.width // steps, "it counts what goes together")]))
        self.dims = {name: tuple(axis.root for axis in dims) for name, dims in self.dims.items()}
        self._sized_by = self._by_atom()
        gone = {place for group in groups for place in self.places[group]}
        where = [(name, dim) for name, dims in self.dims.items() for dim in range(len(dims)) if (name, dim) in gone]
        linked = self._group(unit.root, where, {group.name for group in self.places if group not in groups})
        for group in groups:
            self.choices.pop(group.name, None)
        places, axes = self.places, self.axes
        self.places, self.axes = {}, {}
        for group in places:
            if group is groups[0]:
                self.places[linked], self.axes[linked] = where, unit.root
            elif group not in groups:
                self.places[group], self.axes[group] = places[group], axes[group]
        return linked

    def _by_atom(self) -> dict[Axis, list[Choice]]:
        found: dict[Axis, list[Choice]] = {}
        for choice in self._attributes:
            for atom in dict.fromkeys(atom for atom, _, _ in atoms(choice.axis)):
                found.setdefault(atom, []).append(choice)
        return found

    def replace(self, old: Coupled, new: Coupled) -> None:
        """Puts `new`, which differs in its lock, in the place of `old`."""
        self.places = {new if group is old else group: where for group, where in self.places.items()}
        self.axes = {new if group is old else group: axis for group, axis in self.axes.items()}

    def keep_one_factor(self) -> None:
        """Locks all but the widest of the groups whose product one dimension is: a fraction is to go once, not twice.

        In a grouped convolution these are the groups and the channels inside of each.
        """
        free = {axis: group for group, axis in self.axes.items() if group.locked is None}
        rivals: dict[Axis, set[Axis]] = {axis: set() for axis in free}
        for axis in {axis for group in free.values() for axis in self._dims_of(group)}:
            for one, two in rival_atoms(axis):
                if one in free and two in free:
                    rivals[one].add(two)
                    rivals[two].add(one)
        chosen = set[Axis]()
        for axis in sorted(free, key=lambda axis: -axis.size):
            winners = [other for other in rivals[axis] if other in chosen]
            if not winners:
                chosen.add(axis)
            else:
                self.instead[axis] = winners
                reason = f"its channels are divided among {free[winners[0]].name}, of which whole ones go instead"
                self.replace(free[axis], replace(free[axis], locked=reason))

    def _dims_of(self, group: Coupled) -> list[Axis]:
        return [self.dims[name][dim] for name, dim in self.places[group]]

    def entries(self, gone: dict[Coupled, list[int]]) -> list[Entry]:
        """One plan entry for each group, to be applied in order."""
        removed: dict[Axis, Mask] = {}
        masks: dict[tuple[str, int], Mask] = {}
        values: dict[tuple[str, str], Any] = {}
        found = []
        for group, channels in gone.items():
            removed[self.axes[group]] = _mask(group.width, channels)
            left: dict[Axis, Mask] = {}
            lines: dict[tuple[Axis, bytes | None], list[int]] = {}
            tensors: dict[str, dict[str, list[int]]] = {}
            shapes: dict[str, list[int]] = {}
            for name, dim in self.places[group]:
                axis = self.dims[name][dim]
                if axis not in left:
                    left[axis] = kept(axis, removed)
                old = masks.get((name, dim))
                line = (axis, None if old is None else old.tobytes())
                if line not in lines:
                    lines[line] = np.flatnonzero(left[axis] if old is None else left[axis][old]).tolist()
                if name not in shapes:
                    shapes[name] = [
                        int(masks[name, other].sum()) if (name, other) in masks else size
                        for other, size in enumerate(self.shapes[name])
                    ]
                tensors.setdefault(name, {})[str(dim)] = lines[line]
            for name, dim in self.places[group]:
                masks[name, dim] = left[self.dims[name][dim]]
            attributes: dict[str, dict[str, Any]] = {}
            for choice in (*self._sized_by.get(self.axes[group], ()), *self.choices.get(group.name, ())):
                key = (choice.module, choice.attribute)
                old_value = values.get(key, choice.old)
                new_value = choice.value(old_value, removed)
                if new_value != old_value:
                    values[key] = new_value
                    attributes.setdefault(choice.module, {})[choice.attribute] = (
                        list(new_value) if isinstance(new_value, tuple) else new_value
                    )
            found.append({"kind": "slice", "tensors": tensors, "shapes": shapes, "attributes": attributes})
        return found

    def sizes_without(self, gone: dict[Coupled, list[int]]) -> Sizes:
        """What is left of every tensor."""
        removed = {self.axes[group]: _mask(group.width, channels) for group, channels in gone.items()}
        left: dict[Axis, list[int]] = {}
        indices: dict[str, dict[int, list[int]]] = {}
        for group in gone:
            for name, dim in self.places[group]:
                axis = self.dims[name][dim]
                if axis not in left:
                    left[axis] = np.flatnonzero(kept(axis, removed)).tolist()
                if len(left[axis]) < axis.size:
                    indices.setdefault(name, {})[dim] = left[axis]
        return Sizes(shapes=self.shapes, kept=indices, attributes={})

    def _parts(self, atom: Axis, where: Iterable[tuple[str, int]]) -> tuple[Part, ...]:
        trace = self._trace
        makers = {name.rpartition(".")[0] for name, _ in trace.made}
        # A matrix and the vectors of the same rows are one side; a second matrix (of a recurrent layer) is another.
        sides: dict[tuple[str, object, bool, str], list[tuple[str, int]]] = {}
        for name, dim in where:
            module = name.rpartition(".")[0]
            makes = (name, dim) in trace.made or (module in makers and len(self.shapes[name]) == 1)
            side = (module, signature(self.dims[name][dim]), makes)
            with_vectors = [key for key in sides if key[:3] == side]
            alone = len(self.shapes[name]) > 1 or not with_vectors
            sides.setdefault((*side, name) if alone else with_vectors[-1], []).append((name, dim))
        lines: dict[object, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        parts = []
        for (module, key, makes, _), tensors in sides.items():
            if key not in lines:
                axis = self.dims[tensors[0][0]][tensors[0][1]]
                found = [(positions, index) for other, positions, index in atoms(axis) if other is atom]
                positions = np.concatenate([positions for positions, _ in found])
                index = np.concatenate([index for _, index in found])
                lines[key] = tuple(positions.tolist()), tuple(index.tolist())
            parts.append(
                Part(
                    module=module,
                    tensors=tuple(sorted(tensors, key=lambda item: len(self.shapes[item[0]]) == 1)),
                    indices=lines[key][0],
                    channels=lines[key][1],
                    makes=makes and any(len(self.shapes[name]) > 1 for name, _ in tensors),
                    is_norm=isinstance(self._modules.get(module), _NORMS),
                )
            )
        return tuple(parts)


def _mask(width: int, channels: list[int]) -> Mask:
    mask = np.zeros(width, dtype=np.bool_)
    mask[channels] = True
    return mask


def _kind(parts: tuple[Part, ...], modules: dict[str, nn.Module]) -> str:
    makers = [modules[part.module] for part in parts if part.makes]
    return "channels" if any(isinstance(maker, _CONVOLUTIONS) for maker in makers) else "neurons"
