"""Whether a narrowed model trains as the whole one does with zeros: one step, with all that it writes."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.batches import Inputs, map_targets, map_tensors
from compressor.outputs.returned import returned_tensors
from compressor.structure.calling.draws import EvenDraws, seeded
from compressor.structure.calling.shown import TrainingStep
from compressor.structure.model_copies import sharing_copy
from compressor.structure.source_lines import told
from compressor.structure.tensor_ids import Sizes, tensors_of
from compressor.structure.trials import same_outputs, same_returned
from compressor.workload import call_model, output_tensor


def difference_in_training(
    narrow: nn.Module,
    masked: nn.Module,
    sizes: Sizes,
    steps: Sequence[TrainingStep],
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> str | None:
    """Why `narrow` does not train as `masked` does, which has zeros where `sizes` leaves out, or None where it does.

    All is done within `context`, which may lead the program elsewhere.

    Taken is the first of `steps` that `masked` can make. Compared are what is returned, the loss, and every parameter
    and buffer afterwards, where `masked` does the same again under one seed; otherwise `narrow` must run. It is done in
    double precision where the model runs in it: statistics over few samples magnify rounding. Both models stay as they
    are.
    """
    for step in steps:
        for double in (True, False):
            trial = _Trial(step=step, double=double, context=context)
            whole = trial.run(masked)
            if isinstance(whole, _Trained):
                reason = trial.difference(narrow, masked, whole, sizes)
                return None if reason is None else f"in training: {reason}"
    return None  # what cannot be trained has nothing to lose


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """What one step gave: what was returned, with the loss; the model's tensors; whether numbers were drawn."""

    returned: list[Tensor]
    tensors: dict[str, Tensor]
    drawn: bool


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """One step of training, forward, loss and backward, in double precision or as it is."""

    step: TrainingStep
    double: bool
    context: Callable[[], AbstractContextManager[Any]]

    def difference(self, narrow: nn.Module, masked: nn.Module, whole: _Trained, sizes: Sizes) -> str | None:
        given = self.run(narrow)
        reason = _fault(given, whole, sizes)
        if reason is None or isinstance(given, str) or _fault(self.run(masked), whole, None) is not None:
            return given if isinstance(given, str) else None
        if not whole.drawn:
            return reason
        even = self.run(masked, even=True)
        return None if isinstance(even, str) else _fault(self.run(narrow, even=True), even, sizes)

    def run(self, model: nn.Module, *, even: bool = False) -> _Trained | str:
        """What the step gives on a copy of `model`, or the first line of the error."""
        # Steps may write into parameters too.
        copy = sharing_copy(model, own=tensors_of(model)).train()
        try:
            with torch.enable_grad(), seeded() as draws, EvenDraws() if even else nullcontext(), self.context():
                raw = call_model(copy.double() if self.double else copy, self._cast(self.step.inputs))
                returned = returned_tensors(raw)
                loss = self._loss(raw)
                if loss is not None:
                    returned.append(loss)
                    if loss.requires_grad:
                        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        except Exception as error:  # noqa: BLE001 - a user's model may raise anything
            return told(error)
        tensors = {name: tensor.detach() for name, tensor in tensors_of(copy).items()}
        return _Trained(returned=[tensor.detach() for tensor in returned], tensors=tensors, drawn=draws.any)

    def _loss(self, raw: object) -> Tensor | None:
        if self.step.loss is None or self.step.targets is None:
            return None
        return self.step.loss(output_tensor(raw), map_targets(self.step.targets, self._cast_tensor))

    def _cast(self, inputs: Inputs) -> Inputs:
        return map_tensors(inputs, self._cast_tensor)

    def _cast_tensor(self, tensor: Tensor) -> Tensor:
        return tensor.double() if self.double and tensor.is_floating_point() else tensor


def _fault(given: _Trained | str, whole: _Trained | str, sizes: Sizes | None) -> str | None:
    """Why one step gave something else than the other, whose tensors `sizes` narrows."""
    if isinstance(given, str):
        return given
    if isinstance(whole, str):
        return None
    reason = same_returned(given.returned, whole.returned)
    if reason is not None:
        return reason
    for name, tensor in given.tensors.items():
        wanted = whole.tensors.get(name, tensor)
        for dim, places in sizes.kept.get(name, {}).items() if sizes is not None else ():
            wanted = wanted.index_select(dim, torch.tensor(places, device=wanted.device))
        if tensor.shape != wanted.shape:
            return f"{name!r} becomes {tuple(tensor.shape)} instead of {tuple(wanted.shape)}"
        if same_outputs(tensor, wanted) is not None:
            return f"it leaves other numbers in {name!r}"
    return None
