"""The outputs besides the judged one: those with losses of their own are trained, the others held where they were.

What no loss sees is free to drift while a model is trained: a second head would be lost while the first one recovers.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.batches import Inputs, Targets
from compressor.kept_state import private_copy
from compressor.notes.training import OtherOutputs, OutputChange
from compressor.outputs.kinds import Numbers
from compressor.outputs.returned import returned_by_name
from compressor.stage import Context
from compressor.structure.calling.draws import kept_randomness
from compressor.training.judged import settled
from compressor.training.loop import train
from compressor.training.passes.losses import Position
from compressor.training.precision import Form, Precision, at_least_float32
from compressor.training.progress import EpochLog
from compressor.training.replay import kept_modes, replayed
from compressor.training.settings import TrainingSettings
from compressor.training.teaching import Teacher
from compressor.workload import Workload, batches_of, call_model, output_tensor

# A weight on the squared difference over the variance: 0.1 of the spread costs as much as a loss of 0.01.
_FLOOR = 1e-12
# The part of an output's variance beyond which its loss in a training is told in words.
_LOST = 0.2


@dataclass(frozen=True, kw_only=True)
class Others:
    """What becomes of the outputs besides the judged one in a training.

    `held` are drawn to those of `holder`, the teacher or the reference; `trained` have losses of their own in
    `workload.others`; `left` says of all others why neither can be done.
    """

    workload: Workload
    holder: Teacher | None
    held: tuple[str, ...]
    trained: tuple[str, ...]
    left: Mapping[str, str]
    temperature: float = 1.0

    @classmethod
    def of(
        cls,
        model: nn.Module,
        workload: Workload,
        *,
        precision: Precision,
        seed: int,
        teacher: Teacher | None = None,
        temperature: float = 1.0,
    ) -> "Others":
        """The other outputs of `model`, called on the example inputs; taught by `teacher` where it has them all.

        Without a teacher the reference holds those that have no loss of their own.
        """
        ours, theirs = _others_of(model, workload), _others_of(workload.model, workload)
        trained = tuple(name for name, own in workload.others.items() if own.loss is not None and name in ours)
        left = {name: _why_left(tensor, theirs.get(name)) for name, tensor in ours.items()}
        held = tuple(name for name, why in left.items() if not why and (teacher is not None or name not in trained))
        holder = None
        if held:
            holder = teacher if teacher is not None and _answers(teacher, workload, ours, held) else None
            holder = holder or Teacher(workload.model, workload, precision, seed=seed, remember=False)
            holder.names = held
        kept = {name: why for name, why in left.items() if why and name not in trained}
        return cls(workload=workload, holder=holder, held=held, trained=trained, left=kept, temperature=temperature)

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.held or self.trained)

    def applied(self, teacher: Teacher | None = None) -> AbstractContextManager[None]:
        """The context in which the holder answers, where that is another than `teacher`."""
        if self.holder is None or self.holder is teacher:
            return nullcontext()
        return self.holder.form.applied(self.holder.asked)

    def loss(
        self,
        raw: Any,
        inputs: Inputs,
        targets: Targets,
        position: Position,
        answered: Mapping[str, Tensor] | None = None,
    ) -> Tensor | float:
        """What is added to the loss of a batch of which the model gave `raw`; `answered` is what the teacher said."""
        ours = returned_by_name(raw)
        total: Tensor | float = 0.0
        for name in self.trained:
            own = self.workload.others[name]
            assert own.loss is not None  # that is why it is trained
            wanted = targets[name] if isinstance(targets, Mapping) and name in targets else targets
            total = total + own.weight * own.loss(at_least_float32(ours[name]), wanted)
        if not self.held:
            return total
        if answered is None or not set(self.held) <= answered.keys():
            assert self.holder is not None  # what is held has a holder
            answered = self.holder.answer(inputs, targets, position).others
        for name in self.held:
            # In training mode a model may give fewer.
            if name in ours and ours[name].shape == answered[name].shape:
                student = at_least_float32(ours[name])
                total = total + self._weight(name) * self._distance(name, student, answered[name].to(student.device))
        return total

    def note(self, before: nn.Module, after: nn.Module) -> OtherOutputs:
        """What the report is told: of every output, how far it is from the reference's before and after."""
        names = tuple(dict.fromkeys((*self.held, *self.trained)))
        first, last = (relative_changes(model, self.workload, names) for model in (before, after))
        rows = [
            OutputChange(
                output=name,
                treated=self._treated(name),
                before=first.get(name),
                after=last.get(name),
                says=self._lost(name, first.get(name, 0.0), last.get(name, 0.0)),
            )
            for name in names
        ]
        rows += [OutputChange(output=name, treated=f"left alone: {why}") for name, why in self.left.items()]
        return OtherOutputs(other_outputs=tuple(rows))

    def _treated(self, name: str) -> str:
        ways = ["trained by its own loss"] if name in self.trained else []
        return " and ".join([*ways, *(["held where the reference has it"] if name in self.held else [])])

    def _lost(self, name: str, before: float, after: float) -> str | None:
        """What is to be said where the training lost a good part of an output; its own loss may have meant it."""
        lost = after**2 - before**2
        if name in self.trained or not lost > _LOST:
            return None
        return (
            f"this training lost {'all' if lost > 1 else f'{lost:.0%}'} of what it says: the rate is too high for it; "
            "take a lower one, or give it a loss of its own, Workload(others=...)"
        )

    def _weight(self, name: str) -> float:
        return self.workload.others[name].weight if name in self.workload.others else 1.0

    def _distance(self, name: str, student: Tensor, teacher: Tensor) -> Tensor:
        own = self.workload.others.get(name)
        if own is not None and own.kind is not None and not isinstance(own.kind, Numbers):
            return own.kind.distance(student, teacher, temperature=self.temperature)
        alive = student.isfinite() & teacher.isfinite()
        apart = (student.where(alive, 0.0) - teacher.where(alive, 0.0)).square().sum()
        return apart / (_spread(teacher.where(alive, 0.0)) * alive.sum()).clamp(min=_FLOOR)


def train_every_output(
    model: nn.Module,
    workload: Workload,
    settings: TrainingSettings,
    *,
    context: Context,
    before_batch: Callable[[Position], None] | None = None,
    **more: Any,
) -> list[EpochLog]:
    """What `training.loop.train` does and gives, with the other outputs held or trained beside the judged one.

    `before_batch` is told where in the stream each batch stands.
    """
    workload = settled(workload)
    others = Others.of(model, workload, precision=settings.precision, seed=context.seed)
    if not others and before_batch is None:
        return train(model, workload, settings, context=context, **more)
    form, before = Form.of(model), private_copy(model)

    def objective(student: nn.Module, inputs: Inputs, targets: Targets, position: Position) -> Tensor:
        if before_batch is not None:
            before_batch(position)
        raw = call_model(student, inputs)
        with form.exact():
            loss = workload.loss(at_least_float32(output_tensor(raw)), targets)
            return loss + others.loss(raw, inputs, targets, position) if others else loss

    with others.applied():
        logs = train(model, workload, settings, context=context, objective=objective, **more)
    if others:
        context.tell(others.note(before, model))
    return logs


def relative_changes(model: nn.Module, workload: Workload, names: tuple[str, ...]) -> dict[str, float]:
    """How far the outputs `names` of `model` are from the reference's on validation: rms difference over the spread."""
    sums = {name: torch.zeros(4, dtype=torch.float64) for name in names}
    reference = private_copy(workload.model).eval()
    forms = Form.of(model), Form.of(reference)
    with kept_modes(model), replayed(0, 0), torch.no_grad():
        model.eval()
        for inputs, _ in batches_of(workload.validation):
            ours, theirs = (
                returned_by_name(call_model(each, form.place(inputs)))
                for each, form in zip((model, reference), forms, strict=True)
            )
            for name in names:
                if name in ours and name in theirs and ours[name].shape == theirs[name].shape:
                    one, two = ours[name].double().cpu(), theirs[name].double().cpu()
                    alive = one.isfinite() & two.isfinite()
                    one, two = one[alive], two[alive]
                    found = [(one - two).square().sum(), two.sum(), two.square().sum(), torch.tensor(one.numel())]
                    sums[name] += torch.stack([value.double() for value in found])
    changes = {}
    for name, (apart, total, squares, count) in ((name, own.tolist()) for name, own in sums.items()):
        if count:
            spread = squares - total**2 / count
            # An output that is the same for every sample has no spread: then its size counts.
            spread = spread if spread > _FLOOR * squares else squares
            changes[name] = (apart / spread) ** 0.5 if spread else apart**0.5
    return changes


def _spread(values: Tensor) -> Tensor:
    variance, size = values.var(correction=0), values.square().mean()
    return torch.where(variance > 1e-6 * size, variance, size)


def _others_of(model: nn.Module, workload: Workload) -> dict[str, Tensor]:
    """The floating outputs besides the judged one and what follows from it, by name, with their gradients."""
    copied = private_copy(model).eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    with kept_randomness(), torch.enable_grad():
        raw = call_model(copied, Form.of(copied).place(workload.example_inputs))
    judged = output_tensor(raw)
    return {
        name: tensor
        for name, tensor in returned_by_name(raw).items()
        if tensor is not judged and tensor.is_floating_point() and not _follows_from(tensor, judged)
    }


def _follows_from(tensor: Tensor, judged: Tensor) -> bool:
    """Whether no weight reaches `tensor` but through `judged`, as probabilities beside their logits."""
    if tensor.grad_fn is None or judged.grad_fn is None:
        return False
    rest, seen = [tensor.grad_fn], {judged.grad_fn}
    while rest:
        node = rest.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            return False
        rest += [following for following, _ in node.next_functions if following is not None]
    return True


def _why_left(ours: Tensor, theirs: Tensor | None) -> str:
    if theirs is None:
        return "the reference has no such output"
    if ours.shape != theirs.shape:
        return f"it has the shape {tuple(ours.shape)}, and {tuple(theirs.shape)} in the reference"
    return "" if ours.requires_grad else "it depends on no weight"


def _answers(teacher: Teacher, workload: Workload, ours: Mapping[str, Tensor], names: tuple[str, ...]) -> bool:
    """Whether `teacher` has the outputs `names`, in the shapes of the student's."""
    with kept_randomness(), torch.no_grad():
        raw = returned_by_name(call_model(teacher.asked, teacher.form.place(workload.example_inputs)))
    return all(name in raw and raw[name].shape == ours[name].shape for name in names)
