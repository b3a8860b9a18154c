"""Knowledge distillation: the compressed model learns the original's outputs besides the targets.

loss = soft_weight * T^2 KL(teacher_T || student_T) + (1 - soft_weight) * task loss, p_T = softmax(logits / T)
(Hinton et al. 2015, arXiv:1503.02531, sec. 2), with the distance that fits what outputs say, and optionally the
distance between inner features of both (FitNets: Romero et al. 2015, arXiv:1412.6550, eq. 3). Training replays a fixed
set of augmented views, so that the teacher computes each of them once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from compressor.batches import Inputs, Targets
from compressor.checks import check_count, check_fraction, check_kinds, check_not_negative, check_positive, check_tuple
from compressor.errors import WorkloadError
from compressor.identity.values import Identifier
from compressor.identity.workload import knowing
from compressor.kept_state import private_copy
from compressor.notes.training import Adapters, Teaching
from compressor.stage import Context, Effect
from compressor.training.hints import Hint, Hinted, hinted, tapped
from compressor.training.judged import output_kind, settled
from compressor.training.lessons import Lessons
from compressor.training.loop import train
from compressor.training.objectives.answers import (
    Correlation,
    Decoupled,
    Relational,
    SoftTargets,
    StandardizedLogits,
)
from compressor.training.objectives.features import AttentionMaps, FeatureValues
from compressor.training.other_outputs import Others
from compressor.training.passes.losses import Position
from compressor.training.precision import Form
from compressor.training.progress import epochs_note
from compressor.training.settings import TrainingSettings
from compressor.training.snapshots import digest
from compressor.training.teaching import Teacher
from compressor.workload import Workload, call_model, output_tensor
from compressor.workloads import function_named

_LOSS = "loss is a function of (student, teacher, targets)"
_INPUTS = "teacher_inputs is a function of the workload's inputs"


@dataclass(frozen=True, kw_only=True)
class Distill(TrainingSettings):
    """Trains on the teacher's outputs and keeps the epoch that is best on validation.

    The teacher is `workload.model` unless another is given. `soft_weight` in [0, 1] is the teacher's part of the loss:
    for classes the divergence at `temperature` (> 0), for labels that of Bernoulli distributions, for numbers the mean
    squared difference, where `temperature` plays no role. `views` (>= 1) counts the augmented passes over the data that
    are replayed: epoch e sees view e % views.

    `features` names modules, present in teacher and student, or pairs of them, `Hint(student=..., teacher=...)`, whose
    outputs are to agree, with weight `feature_weight` (>= 0); where sizes differ, the student's are averaged or
    interpolated and a linear map learns to fit, which is thrown away. A teacher of other classes teaches by features
    alone, with `soft_weight` 0. `compare` says how features are compared. `objectives` replace the divergence at
    `temperature`: their distances add up, each with its weight. `loss` replaces the distance to the teacher: a function
    of (student, teacher, targets), the judged outputs, or its name, "package.module:function". `teacher_inputs`, given
    in the same ways, makes the teacher's inputs of the workload's. Outputs that no loss sees are drawn to the
    teacher's, too.

    `precision` is that of student and teacher; the other settings are those of every training (`TrainingSettings`).
    """

    effect: ClassVar[Effect] = Effect.VALUES
    trains: ClassVar[bool] = True

    epochs: int = 8
    tail_epochs: int = 1
    temperature: float = 4.0
    soft_weight: float = 0.9
    views: int = 4
    features: tuple[str | Hint, ...] = ()
    feature_weight: float = 1.0
    compare: FeatureValues | AttentionMaps = field(default_factory=FeatureValues)
    objectives: tuple[SoftTargets | StandardizedLogits | Decoupled | Correlation | Relational, ...] = ()
    loss: Callable[[Tensor, Tensor, Any], Tensor] | str | None = field(default=None, repr=False, compare=False)
    teacher_inputs: Callable[[Inputs], Inputs] | str | None = field(default=None, repr=False, compare=False)
    teacher: nn.Module | None = field(default=None, repr=False, compare=False)
    functions: tuple[Callable[..., Any] | None, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kinds(self)
        check_positive(self.temperature, "temperature divides the logits, usually by 1 to 5")
        check_fraction(self.soft_weight, "soft_weight is the teacher's fraction of the loss", within="[0, 1]")
        check_count(self.views, "views counts the augmented passes that are replayed")
        check_tuple(self.features, "features is a tuple of module names")
        check_not_negative(self.feature_weight, "feature_weight is a factor")
        self._check_objectives()
        # Found here, so that a name that is wrong is refused before any work, and their code is part of the stage.
        object.__setattr__(self, "functions", (_function(self.loss, _LOSS), _function(self.teacher_inputs, _INPUTS)))

    def _check_objectives(self) -> None:
        check_tuple(self.objectives, "objectives is a tuple of value objects such as (Decoupled(),)")
        known = (SoftTargets, StandardizedLogits, Decoupled, Correlation, Relational)
        for objective in self.objectives:
            if not isinstance(objective, known):
                raise ValueError(
                    f"objectives are {', '.join(kind.__name__ + '()' for kind in known)}, got {objective!r}; a "
                    "function of your own goes into loss="
                )
        if self.objectives and (self.loss is not None or not self.soft_weight):
            other = "loss replaces them" if self.loss is not None else "soft_weight is 0"
            raise ValueError(f"objectives would not be used: {other}; leave one of the two out")

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        context = knowing(context, workload, self)
        workload = settled(workload)
        original = workload.model if self.teacher is None else self.teacher
        own, adapt = self.functions
        hints = tuple(map(Hint.of, self.features))
        kind = output_kind(workload)
        teacher = Teacher(original, workload, self.precision, seed=context.seed, remember=not hints, adapt=adapt)
        others = Others.of(
            model,
            workload,
            precision=self.precision,
            seed=context.seed,
            teacher=teacher,
            temperature=self.temperature,
        )
        lessons = Lessons(
            workload=workload,
            kind=kind,
            soft_weight=self.soft_weight,
            temperature=self.temperature,
            own=own,
            objectives=self.objectives,
        )
        lessons.check()
        with teacher.form.applied(teacher.asked), others.applied(teacher):
            taught = model
            if hints:
                taught = hinted(model, teacher, hints, workload, seed=context.seed, compare=self.compare)
            form, before = Form.of(model), private_copy(model) if others else model
            ours, theirs = tuple(hint.student for hint in hints), tuple(hint.teacher for hint in hints)

            def objective(student: nn.Module, inputs: Inputs, targets: Targets, position: Position) -> Tensor:
                with tapped(model, ours) as features:
                    raw = call_model(student, inputs)
                with tapped(teacher.model, theirs) as wanted:
                    answer = teacher.answer(inputs, targets, position)
                with form.exact():
                    loss = lessons.loss(output_tensor(raw), answer.judged, inputs, targets)
                    if others:
                        loss = loss + others.loss(raw, inputs, targets, position, answer.others)
                    if isinstance(taught, Hinted):
                        loss = loss + self.feature_weight * taught.distance(features, wanted)
                return loss

            logs = train(
                taught,
                workload,
                self,
                context=context,
                objective=objective,
                views=self.views,
                label="distill",
                identity=f"{self!r} {digest(teacher.model)} {Identifier().digest(self.functions).text}",
                student=model,
            )
        context.tell(epochs_note(logs, workload.metric, context.details))
        context.tell(
            Teaching(
                teacher=type(original).__name__,
                teacher_cache=teacher.summary(),
                taught=lessons.says(),
            )
        )
        if others or others.left:
            context.tell(others.note(before, model))
        if isinstance(taught, Hinted):
            context.tell(Adapters(adapters=taught.adapted()))
        return model


def _function(given: Callable[..., Any] | str | None, wanted: str) -> Callable[..., Any] | None:
    """The function that is given, or named. Raises ValueError for anything else."""
    if given is None or (callable(given) and not isinstance(given, type)):
        return given
    if isinstance(given, str):
        try:
            return function_named(given, wanted)
        except WorkloadError as error:
            raise ValueError(str(error)) from error
    raise ValueError(f"{wanted}, or its name, package.module:function; got {given!r}")
