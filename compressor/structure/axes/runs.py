"""The axes of a model as its calls show them: examples, a training step, and paths that no example takes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compressor.batches import Inputs, map_targets, map_tensors
from compressor.progress.bars import tick
from compressor.structure.axes.axis import Axis, leaves
from compressor.structure.axes.decisions import Place, Steps
from compressor.structure.axes.forced_paths import Operators
from compressor.structure.axes.trace import Trace, Watch
from compressor.structure.axes.unreached.reach import Beyond, lock_what_is_not_reached
from compressor.structure.axes.unreached.skipped_code import worth_watching
from compressor.structure.axes.unreached.skipping import lock_what_is_skipped, lock_what_others_take_apart
from compressor.structure.calling.clues import sizes_mentioned
from compressor.structure.calling.coverage import Awaited, Coverage
from compressor.structure.calling.draws import seeded
from compressor.structure.calling.shown import Shown, TrainingStep
from compressor.structure.model_copies import shape_copy, sharing_copy
from compressor.structure.tensor_ids import tensors_of
from compressor.workload import batch_size_of, call_model, input_tensors, output_tensor

# Paths beyond the examples that are tried at most.
_DECISIONS = 32
# Of them, that are walked in every trial at most.
_WALKED = 6
_TRAINED = 3
# Numbers that the program mentions, and second decisions behind a first, that are tried at most.
_CLUES = 24
_SECOND = 16
# Decisions of a place after the first that are taken otherwise though every layer is reached: one line may hold two.
_TURN = 1
# Training steps that draw other numbers than the first.
_SEEDS = 8
_FACTORS = (0.5, 2.0, 4.0)
# The first of them is a single position.
_LENGTHS = (0.0, 0.5, 2.0, 4.0)
# Inputs of other sizes, on which another path is taken, that are shown at most.
_SIZES = 3
# Numbers of samples that are tried besides those that the program mentions, and how many of these.
_SAMPLES = (3, 1)
_MENTIONED = 16
# Elements of inputs of sizes that the program mentions.
_LARGEST, _LARGEST_OF_NUMBERS = 1 << 20, 1 << 16


def trace_axes(model: nn.Module, shown: Shown) -> tuple[Trace, bool]:
    """The axes of `model`, in eval mode, as its calls show them, and whether the example needed no numbers.

    On the meta device nothing is computed. A call that needs more than shapes fails there, with any kind of error, and
    is made again with numbers. What an example raises is passed on; a training step that fails is told in the trace.
    Where programs branch on numbers or sizes, the other ways are tried as well: layers that only those reach stay
    unreached, but lock no more than what they meet there.
    """
    worth = worth_watching(model)
    try:
        runs = _Runs(model, worth.awaited)
        runs.example(shown.example, by_shapes=True)
        by_shapes = True
    except Exception:  # noqa: BLE001 - many programs need numbers: they look at values, or bring tensors along
        runs = _Runs(model, worth.awaited)
        runs.example(shown.example, by_shapes=False)
        by_shapes = False
    evaluated = runs.watch.operators
    for inputs in shown.others:
        runs.either(inputs)
    untrained = runs.train(shown)
    trace = runs.watch.trace
    trace.trains_alike = untrained is None and runs.trained == evaluated
    runs.show_more(shown)
    runs.explore(shown, by_shapes=by_shapes)
    runs.show_sizes(shown.example, by_shapes=by_shapes)
    runs.watch.finish(runs.reached)
    lock_what_others_take_apart(model, trace)
    lock_what_is_not_reached(model, trace, runs.explored, untrained)
    lock_what_is_skipped(model, trace, runs.coverage, worth.stored)
    return trace, by_shapes


class _Runs:
    """The calls of copies of one model under one watch.

    `awaited` are the places in the program that it watches for.
    `reached` are the tensors that they met, by identity, and `explored`, by name, those that only other paths met.
    """

    def __init__(self, model: nn.Module, awaited: Awaited) -> None:
        self.model = model
        self.watch = Watch(model, Trace())
        self.coverage = Coverage(self.watch.dims_in, awaited)
        self.reached: set[int] = set()
        self.explored: dict[str, Beyond] = {}
        self.trained: list[Any] = []
        self._taken: list[list[Any]] = []
        self._taken_in_training: list[list[Any]] = []
        self._copies: dict[bool, nn.Module] = {}
        self._inputs = 0
        self._seed = 0
        self._drawn = False

    def example(self, inputs: Inputs, *, by_shapes: bool) -> None:
        """Calls the model in eval mode."""
        self._call(self._copy(by_shapes=by_shapes), inputs, by_shapes=by_shapes)
        self.reached |= self.watch.met
        self._taken.append(self.watch.operators)

    def either(self, inputs: Inputs) -> None:
        """Calls the model with shapes alone, and again with numbers where that fails. What that raises is passed on."""
        try:
            self.example(inputs, by_shapes=True)
        except Exception:  # noqa: BLE001 - as in trace_axes
            self.example(inputs, by_shapes=False)

    def show_more(self, shown: Shown) -> None:
        """Calls the model on more samples, where layers are out of reach and numbers decide what runs."""
        for inputs in shown.batches if self.watch.decisions.ways else ():
            if not self._unreached():
                break
            before = set(self.reached)
            with suppress(Exception):  # nobody says that these can be traced
                self.either(inputs)
            if self.reached != before:
                self.watch.trace.more.append(inputs)

    def train(self, shown: Shown) -> str | None:
        """Runs the training step, forward and loss; the reason where it cannot be run."""
        failed = None
        for step in shown.steps():
            for by_shapes in (True, False):
                try:
                    self._step(step, by_shapes=by_shapes)
                except Exception as error:  # noqa: BLE001 - a model may need more samples, or not be fit for training
                    failed = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                else:
                    self.reached |= self.watch.met
                    self._by_chance(step, by_shapes=by_shapes)
                    return None
        # Without a step it was called on samples that nobody said it can be trained on.
        return None if shown.step is None else failed

    def _by_chance(self, step: TrainingStep, *, by_shapes: bool) -> None:
        """Steps that draw other numbers, where some are drawn and layers may wait for others."""
        first = self.trained
        while self._drawn and self._unreached() and self._seed < _SEEDS:
            self._seed += 1
            with suppress(Exception):
                self._step(step, by_shapes=by_shapes)
                self.reached |= self.watch.met
        self.trained, self._seed = first, 0
        self._taken_in_training.append(first)

    def explore(self, shown: Shown, *, by_shapes: bool) -> None:
        """Takes every decision otherwise, and gives inputs of other sizes where layers are not reached by then."""
        decisions, trace = self.watch.decisions, self.watch.trace
        branches, unknown = list(trace.branches), set(trace.unknown)
        self.watch.limit = 20 * self.watch.count + 1000
        # The first decision of each place comes before the next ones of any, and numbers of the program's text after.
        places = sorted(decisions.ways, key=lambda place: place.turn)
        plain: list[Steps] = [((place, way),) for place in places for way in decisions.ways[place]]
        read: list[Steps] = [((place, way),) for place in places for way in decisions.clues[place]]
        further: list[Steps] = []
        for steps in (*plain[:_DECISIONS], *read[:_CLUES]):
            if steps[0][0].turn <= _TURN or self._unreached():
                further += [(*steps, (place, way)) for place, ways in self._take(steps, shown) for way in ways]
        for steps in further[:_SECOND]:
            self._take(steps, shown)
        trace.branches, trace.unknown = branches, unknown
        if self._unreached():
            self._explore_sizes(shown.example, by_shapes=by_shapes)

    def _take(self, steps: Steps, shown: Shown) -> list[tuple[Place, tuple[Any, ...]]]:
        """Takes decisions otherwise, in eval mode and in a training step; the decisions that are met only so."""
        decisions, trace = self.watch.decisions, self.watch.trace
        cause = f"the program branches on a computed value{steps[-1][0].line}, and {{}} was not run"
        decisions.force(steps)
        if self._try(cause, lambda: self.example_beyond(shown.example, by_shapes=False)):
            self._keep(steps, trace.paths, self._taken, _WALKED)
        beyond = list(decisions.beyond.items())
        decisions.force(steps)
        if self._try(cause, lambda: self._step(shown.steps()[0], by_shapes=False)):
            self._keep(steps, trace.training_paths, self._taken_in_training, _TRAINED)
        return beyond if len(steps) == 1 else []

    def _keep(self, steps: Steps, paths: list[Steps], taken: list[list[Any]], most: int) -> None:
        """Notes in `paths` what was just walked, where it is another path than those that were `taken` before."""
        # A number may be a size, with which the same operators do other things.
        fresh = self.watch.operators not in taken or any(way == 1 and way is not True for _, way in steps)
        if self.watch.decisions.met and fresh and len(paths) < most:
            taken.append(self.watch.operators)
            paths.append(steps)

    def example_beyond(self, inputs: Inputs, *, by_shapes: bool) -> None:
        """Calls the model in eval mode, without saying that it is ever called so."""
        raw = self._call(self._copy(by_shapes=by_shapes), inputs, by_shapes=by_shapes)
        if len(output_tensor(raw)) != batch_size_of(inputs):
            raise ValueError("samples are mixed up: the program was not written for such inputs")

    def show_sizes(self, example: Inputs, *, by_shapes: bool) -> None:
        """Adds inputs of other sizes, and other numbers of samples, where the model runs other operators on them."""
        mentioned = sizes_mentioned(self.model)[:_MENTIONED]
        most = _LARGEST if by_shapes else _LARGEST_OF_NUMBERS
        lengths = other_sizes(example, _LENGTHS if by_shapes else _LENGTHS[:3], mentioned, most)
        self._show(example, lengths, by_shapes=by_shapes, bounds=False)
        one = _elements(example) / batch_size_of(example)
        counts = [size for size in dict.fromkeys((*_SAMPLES, *mentioned)) if size * one <= most or size in _SAMPLES]
        batches = (of_samples(example, size) for size in counts)
        self._show(example, batches, by_shapes=by_shapes, bounds=True)

    def _show(self, example: Inputs, others: Iterable[Inputs], *, by_shapes: bool, bounds: bool) -> None:
        # What brings constants along for some sizes alone needs numbers there.
        modes = (True, False) if by_shapes else (False,)
        known: dict[bool, list[Operators]] = {mode: [] for mode in modes}
        added, following = 0, set[tuple[Any, ...]]()
        for inputs in others:
            for mode in modes if added < _SIZES else ():
                with suppress(Exception):  # nobody said that the model takes these
                    if not known[mode]:
                        known[mode] = [self._operators(example, shapes_only=mode, bounds=bounds)]
                    if by_shapes and not mode and _elements(inputs) > _LARGEST_OF_NUMBERS:
                        break
                    other, cuts = self._operators(inputs, shapes_only=mode, bounds=bounds), known[mode][0].cuts
                    following |= {key for key, cut in other.cuts.items() if set(cuts.get(key, cut)) != set(cut)}
                    if all(other.met != one.met for one in known[mode]):
                        known[mode].append(other)
                        added += 1
                        self.watch.trace.more.append(inputs)
                    break
        for key in following:
            self.watch.lock_cut(key)

    def _operators(self, inputs: Inputs, *, shapes_only: bool, bounds: bool) -> Operators:
        operators = Operators(shapes_only=shapes_only, bounds=bounds)
        if shapes_only not in self._copies:
            self._copies[shapes_only] = self._copy(by_shapes=shapes_only)
        copy, given = self._copies[shapes_only], inputs
        if shapes_only:
            given = map_tensors(inputs, lambda tensor: torch.empty_like(tensor, device="meta"))
        with torch.no_grad(), seeded(), operators, self.coverage.watched():
            raw = call_model(copy, given)
        if len(output_tensor(raw)) != batch_size_of(inputs):
            raise ValueError("samples are mixed up: the program was not written for such inputs")
        return operators

    def _explore_sizes(self, example: Inputs, *, by_shapes: bool) -> None:
        # What programs make of sizes they were not written for must not count for what the examples show: apart.
        apart = _Runs(self.model, {})
        apart.watch.limit, apart.reached = self.watch.limit, self.reached
        cause = "{} runs only for inputs of other sizes than the examples"
        # Numbers for inputs of four times the size would take long.
        for inputs in other_sizes(example, _FACTORS if by_shapes else _FACTORS[:2]):
            apart._try(cause, lambda: apart.example_beyond(inputs, by_shapes=by_shapes))  # noqa: B023 - called at once
        known = self.watch.names_of(self.reached)
        places: dict[Axis, list[Axis]] = {}
        for name in known:
            for theirs, ours in zip(apart.watch.trace.dims[name], self.watch.trace.dims[name], strict=True):
                for atom in leaves(theirs):
                    places.setdefault(atom, []).append(ours)
        for name, (cause, axes) in apart.explored.items():
            met = [ours for axis in axes for atom in leaves(axis) for ours in places.get(atom, ())]
            self.explored.setdefault(name, (cause, met))

    def _try(self, cause: str, run: Callable[[], None]) -> bool:
        try:
            run()
        except Exception:  # noqa: BLE001 - nobody said that the model takes this path
            return False
        for name in self.watch.names_of(self.watch.met - self.reached):
            self.explored.setdefault(name, (cause, self.watch.trace.dims[name]))
        return True

    def _unreached(self) -> bool:
        known = {*self.watch.names_of(self.reached), *self.explored}
        return any(tensor.numel() > 1 and name not in known for name, tensor in tensors_of(self.model).items())

    def _copy(self, *, by_shapes: bool, own: bool = False) -> nn.Module:
        if by_shapes:
            return shape_copy(self.model)
        return sharing_copy(self.model, own=tensors_of(self.model) if own else ())

    def _step(self, step: TrainingStep, *, by_shapes: bool) -> None:
        # Training steps may write into parameters.
        copy = self._copy(by_shapes=by_shapes, own=True).train()
        raw = self._call(copy, step.inputs, by_shapes=by_shapes)
        self.trained = self.watch.operators
        if step.loss is not None and step.targets is not None:
            targets = map_targets(step.targets, partial(self._know, by_shapes=by_shapes))
            with torch.no_grad(), self.watch.hooks(copy), self.watch:
                step.loss(output_tensor(raw), targets)

    def _call(self, copy: nn.Module, inputs: Inputs, *, by_shapes: bool) -> Any:
        tick()
        self.watch.add_copy(self.model, copy)
        known = self._known(inputs, by_shapes=by_shapes)
        with torch.no_grad(), seeded(self._seed) as draws, self.watch.hooks(copy), self.watch, self.coverage.watched():
            raw = call_model(copy, known)
        self._drawn = draws.any
        self.watch.outputs(raw)
        return raw

    def _known(self, inputs: Inputs, *, by_shapes: bool) -> Inputs:
        return map_tensors(inputs, partial(self._know, by_shapes=by_shapes))

    def _know(self, tensor: Tensor, *, by_shapes: bool) -> Tensor:
        given = torch.empty_like(tensor, device="meta") if by_shapes else tensor
        reason = f"of input {self._inputs}"
        self._inputs += 1
        self.watch.know(given, [Axis(size, f"it is dimension {dim} {reason}") for dim, size in enumerate(given.shape)])
        return given


def other_sizes(inputs: Inputs, factors: Sequence[float], sizes: Sequence[int] = (), most: int = 0) -> Iterator[Inputs]:
    """`inputs` with longer and shorter dimensions: those of one size together, but for that of the samples.

    `sizes` are such as they may have besides `factors` of theirs, where that makes at most `most` elements.
    """
    tensors = input_tensors(inputs)
    count = _elements(inputs)
    for size in dict.fromkeys(size for tensor in tensors for size in tensor.shape[1:] if size > 1):
        for new in (*(max(1, int(size * factor)) for factor in factors), *sizes):
            dims = max(tuple(tensor.shape[1:]).count(size) for tensor in tensors)
            if new in sizes and (new == size or count * (new / size) ** dims > most):
                continue
            yield map_tensors(inputs, lambda tensor: _resized(tensor, size, new))  # noqa: B023 - called at once


def of_samples(inputs: Inputs, count: int) -> Inputs:
    """`inputs` with `count` samples, those that there are again and again; tensors without samples stay."""
    batch = batch_size_of(inputs)
    places = torch.arange(count) % batch
    return map_tensors(
        inputs, lambda tensor: tensor[places.to(tensor.device)] if tensor.ndim and len(tensor) == batch else tensor
    )


def _elements(inputs: Inputs) -> int:
    return sum(tensor.numel() for tensor in input_tensors(inputs))


def _resized(tensor: Tensor, size: int, new: int) -> Tensor:
    for dim in range(1, tensor.ndim):
        if tensor.shape[dim] == size:
            places = torch.arange(new, device=tensor.device) % size
            tensor = tensor.index_select(dim, places)
    return tensor
