"""Knowledge distillation: the compressed model learns the original's outputs besides the targets.

loss = soft_weight * T^2 KL(teacher_T || student_T) + (1 - soft_weight) * task loss, p_T = softmax(logits / T)
(Hinton et al. 2015, arXiv:1503.02531, sec. 2), and optionally the distance between inner features of both (FitNets:
Romero et al. 2015, arXiv:1412.6550, eq. 3). Training replays a fixed set of augmented views, so that the teacher
computes each of them once.
"""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.batches import Inputs
from compressor.checks import check_count, check_fraction, check_globs, check_not_negative, check_positive, check_tuple
from compressor.errors import StageError
from compressor.notes.training import Adapters, Teaching
from compressor.stage import Context, Effect
from compressor.training.loop import Position, train
from compressor.training.optimization import check_schedule
from compressor.training.precision import AutoPrecision, BFloat16, Float32, Form, at_least_float32
from compressor.training.progress import epochs_note
from compressor.training.replay import kept_modes, replayed
from compressor.training.snapshots import digest
from compressor.training.teaching import Teacher, check_shapes, soft_target_loss
from compressor.workload import Workload, call_model, output_tensor, predict


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Trains on the teacher's outputs and keeps the epoch that is best on validation.

    The teacher is `workload.model` unless another is given. `epochs` (>= 1) of one cycle up to `learning_rate` (> 0;
    models trained by AdamW take a fiftieth of it), then `tail_epochs` (>= 0) at a hundredth. `soft_weight` in [0, 1] is
    the teacher's part of the loss; where targets are no classes, it is the mean squared distance to the teacher's
    output and `temperature` (> 0) plays no role. `views` (>= 1) counts the augmented passes over the data that are
    replayed: epoch e sees view e % views. `features` names modules, present in teacher and student, whose outputs are
    to agree, with weight `feature_weight` (>= 0); a linear map learns to fit where widths differ, and is thrown away.
    `precision` says what the inner layers of student and teacher are computed in; outputs, loss and score are float32.
    `freeze` holds globs of modules and parameters that stay as they are, besides those that are frozen already.
    """

    effect: ClassVar[Effect] = Effect.VALUES
    trains: ClassVar[bool] = True

    epochs: int = 8
    learning_rate: float = 0.05
    temperature: float = 4.0
    soft_weight: float = 0.9
    views: int = 4
    tail_epochs: int = 1
    weight_decay: float = 5e-4
    features: tuple[str, ...] = ()
    feature_weight: float = 1.0
    precision: AutoPrecision | Float32 | BFloat16 = field(default_factory=AutoPrecision)
    freeze: tuple[str, ...] = ()
    teacher: nn.Module | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_schedule(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            tail_epochs=self.tail_epochs,
            weight_decay=self.weight_decay,
        )
        check_positive(self.temperature, "temperature divides the logits, usually by 1 to 5")
        check_fraction(self.soft_weight, "soft_weight is the teacher's fraction of the loss", within="[0, 1]")
        check_count(self.views, "views counts the augmented passes that are replayed")
        check_tuple(self.features, "features is a tuple of module names")
        check_not_negative(self.feature_weight, "feature_weight is a factor")
        check_globs(self.freeze, "freeze")

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        original = workload.model if self.teacher is None else self.teacher
        teacher = Teacher(original, workload, self.precision, seed=context.seed, remember=not self.features)
        with teacher.form.applied(teacher.model):
            taught = _with_hints(self, model, teacher, workload, context) if self.features else model
            form = Form.of(model)

            def objective(student: nn.Module, inputs: Inputs, targets: Tensor, position: Position) -> Tensor:
                with tapped(model, self.features) as hints:
                    outputs = at_least_float32(predict(student, inputs))
                with tapped(teacher.model, self.features) as wanted:
                    references = teacher.outputs(inputs, targets, position).to(outputs.device)
                check_shapes(outputs, references)
                with form.exact():
                    loss = (1 - self.soft_weight) * workload.loss(outputs, targets)
                    if workload.metric.classes:
                        loss = loss + self.soft_weight * soft_target_loss(outputs, references, self.temperature)
                    else:
                        loss = loss + self.soft_weight * F.mse_loss(outputs, references)
                    for name, adapter in zip(self.features, _adapters(taught), strict=bool(self.features)):
                        learned, goal = adapter(at_least_float32(hints[name])), at_least_float32(wanted[name])
                        loss = loss + self.feature_weight * F.mse_loss(learned, goal)
                return loss

            logs = train(
                taught,
                workload,
                epochs=self.epochs,
                learning_rate=self.learning_rate,
                context=context,
                tail_epochs=self.tail_epochs,
                weight_decay=self.weight_decay,
                objective=objective,
                views=self.views,
                label="distill",
                identity=f"{self!r} {digest(teacher.model)}",
                precision=self.precision,
                freeze=self.freeze,
                student=model,
            )
        context.tell(epochs_note(logs, workload.metric, context.details))
        context.tell(Teaching(teacher=type(original).__name__, teacher_cache=teacher.summary()))
        if self.features:
            fitted = zip(self.features, _adapters(taught), strict=True)
            context.tell(Adapters(adapters={name: type(adapter).__name__ for name, adapter in fitted}))
        return model


@contextmanager
def tapped(model: nn.Module, names: tuple[str, ...]) -> Iterator[Mapping[str, Tensor]]:
    """The outputs of the named modules of `model`, filled in while it runs."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[name] = output_tensor(output)

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class _Hinted(nn.Module):
    """A student with the maps that compare its features to the teacher's, so that one loop trains and saves both."""

    def __init__(self, student: nn.Module, adapters: nn.ModuleList) -> None:
        super().__init__()
        self.student, self.adapters = student, adapters

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.student(*args, **kwargs)


def _adapters(taught: nn.Module) -> list[nn.Module]:
    return list(taught.adapters) if isinstance(taught, _Hinted) else []


def _with_hints(stage: Distill, model: nn.Module, teacher: Teacher, workload: Workload, context: Context) -> _Hinted:
    form = Form.of(model)
    for owner, side in ((model, "student"), (teacher.model, "teacher")):
        _check_names(stage.features, owner, side)
    with replayed(context.seed, 0), torch.no_grad(), kept_modes(model):
        model.eval()
        with tapped(model, stage.features) as ours:
            call_model(model, form.place(workload.example_inputs))
        with tapped(teacher.model, stage.features) as theirs:
            call_model(teacher.model, teacher.form.place(workload.example_inputs))
        for name in stage.features:
            for seen, side in ((ours, "student"), (theirs, "teacher")):
                if name not in seen:
                    raise StageError(
                        f"features: {name!r} does not run in the {side}; name a module that every input meets"
                    )
        adapters = [_adapter(name, ours[name].shape, theirs[name].shape) for name in stage.features]
    return _Hinted(model, nn.ModuleList(adapters).to(form.device))


def _adapter(name: str, ours: torch.Size, theirs: torch.Size) -> nn.Module:
    if ours == theirs:
        return nn.Identity()
    if len(ours) == len(theirs) == 4 and ours[2:] == theirs[2:]:
        return nn.Conv2d(ours[1], theirs[1], 1)
    if len(ours) == len(theirs) in {2, 3} and ours[1:-1] == theirs[1:-1]:
        return nn.Linear(ours[-1], theirs[-1])
    raise StageError(
        f"features: {name!r} gives {tuple(ours)} in the student and {tuple(theirs)} in the teacher; only the width "
        "(dimension 1 of 4, the last of 2 or 3) may differ; name another module"
    )


def _check_names(names: tuple[str, ...], model: nn.Module, side: str) -> None:
    known = [name for name, _ in model.named_modules() if name]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known[:10])}"
            raise StageError(f"features: the {side} has no module {name!r}; {hint}")
