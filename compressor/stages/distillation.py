"""Knowledge distillation: the compressed model learns the original's outputs besides the targets.

loss = soft_weight * T^2 KL(teacher_T || student_T) + (1 - soft_weight) * task loss, p_T = softmax(logits / T)
(Hinton et al. 2015, arXiv:1503.02531, sec. 2), with the distance that fits what outputs say, and optionally the
distance between inner features of both (FitNets: Romero et al. 2015, arXiv:1412.6550, eq. 3). Training replays a fixed
set of augmented views, so that the teacher computes each of them once. A student that is a network of its own takes the
place of the model: with one of the reference's own class this is born-again training (Furlanello et al. 2018,
arXiv:1805.04770, sec. 3).
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from compressor.batches import Inputs, Targets
from compressor.checks import check_count, check_fraction, check_kinds, check_not_negative, check_positive, check_tuple
from compressor.errors import WorkloadError, first_said
from compressor.given.models import as_usual_model
from compressor.identity.values import Identifier
from compressor.identity.workload import knowing
from compressor.kept_state import private_copy
from compressor.notes.training import Adapters, Teaching
from compressor.stage import Context, Effect
from compressor.structure.calling.draws import seeded
from compressor.training.hints import Hint, Hinted, hinted, tapped
from compressor.training.judged import output_kind, settled
from compressor.training.lessons import Lessons
from compressor.training.loop import train
from compressor.training.new_data.going_on import GoesOn
from compressor.training.objectives.answers import (
    Correlation,
    Decoupled,
    Relational,
    SelfDistillation,
    SoftTargets,
    StandardizedLogits,
)
from compressor.training.objectives.features import AttentionMaps, FeatureValues
from compressor.training.other_outputs import Others
from compressor.training.passes.losses import Position
from compressor.training.precision import Form
from compressor.training.progress import epochs_note
from compressor.training.snapshots import digest
from compressor.training.students.fitting import check_student
from compressor.training.teaching import Teacher
from compressor.workload import Workload, call_model, output_tensor
from compressor.workloads import function_named

_LOSS = "loss is a function of (student, teacher, targets)"
_STUDENT = "student is a torch.nn.Module that goes on in place of the model"
_INPUTS = "teacher_inputs is a function of the workload's inputs"


@dataclass(frozen=True, kw_only=True)
class Distill(GoesOn):
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

    `student`, a network of one's own or the name of a function that makes one, "package.module:function" (called under
    one seed), goes on in place of the model, with a plan and a checkpoint that begin with it: `load_checkpoint` takes
    that function. Its outputs are as many and as large as the reference's, which stays what all is compared with.
    `effect` is STRUCTURE then: its time is judged as that of a model that was cut.

    With `data` the model goes on learning from new data beside a share `replay` of the old ones (`GoesOn`), and the
    teacher is what it was before, unless another is given: Learning without Forgetting.

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
    objectives: tuple[
        SoftTargets | StandardizedLogits | Decoupled | Correlation | Relational | SelfDistillation, ...
    ] = ()
    loss: Callable[[Tensor, Tensor, Any], Tensor] | str | None = field(default=None, repr=False, compare=False)
    teacher_inputs: Callable[[Inputs], Inputs] | str | None = field(default=None, repr=False, compare=False)
    teacher: nn.Module | None = field(default=None, repr=False, compare=False)
    student: nn.Module | str | None = field(default=None, repr=False, compare=False)
    replacement: nn.Module | None = field(init=False, repr=False, compare=False)
    functions: tuple[Callable[..., Any] | None, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kinds(self)
        check_positive(self.temperature, "temperature divides the logits, usually by 1 to 5")
        check_fraction(self.soft_weight, "soft_weight is the teacher's fraction of the loss", within="[0, 1]")
        check_count(self.views, "views counts the augmented passes that are replayed")
        check_tuple(self.features, "features is a tuple of module names")
        for feature in self.features:
            if not isinstance(feature, str | Hint):
                raise ValueError(f"features are names of modules, or Hint(student=..., teacher=...); got {feature!r}")
        if self.teacher is not None and not isinstance(self.teacher, nn.Module):
            raise ValueError(f"teacher is a torch.nn.Module that was trained; got {self.teacher!r}")
        check_not_negative(self.feature_weight, "feature_weight is a factor")
        self._check_objectives()
        # Found here, so that a name that is wrong is refused before any work, and their code is part of the stage.
        object.__setattr__(self, "functions", (_function(self.loss, _LOSS), _function(self.teacher_inputs, _INPUTS)))
        self.read_data_(function_named)
        object.__setattr__(self, "replacement", _student(self.student))
        if self.teacher is not None and self.teacher is self.student:
            raise ValueError(
                "student and teacher are one network, which would be taught what it says already; give a teacher that "
                "was trained, or leave it out: the workload's model teaches then"
            )
        if self.replacement is not None:
            object.__setattr__(self, "effect", Effect.STRUCTURE)

    def _check_objectives(self) -> None:
        check_tuple(self.objectives, "objectives is a tuple of value objects such as (Decoupled(),)")
        known = (SoftTargets, StandardizedLogits, Decoupled, Correlation, Relational, SelfDistillation)
        for objective in self.objectives:
            if not isinstance(objective, known):
                raise ValueError(
                    f"objectives are {', '.join(kind.__name__ + '()' for kind in known)}, got {objective!r}; a "
                    "function of your own goes into loss="
                )
        unused = {
            "loss replaces them": self.loss is not None,
            "soft_weight is 0": not self.soft_weight,
            "all have the weight 0": not any(objective.weight for objective in self.objectives),
        }
        other = next((why for why, true in unused.items() if true), None)
        if self.objectives and other is not None:
            raise ValueError(f"objectives would not be used: {other}; leave one of the two out")
        if self.student is not None and self._by_itself():
            raise ValueError(
                "SelfDistillation holds the model where it was when the stage began, and a student was nowhere yet; "
                "leave one of the two out, or let its teacher teach it by SoftTargets()"
            )

    def _by_itself(self, *, alone: bool = False) -> bool:
        """Whether the model is taught by what it was, or by that `alone`."""
        own = [isinstance(objective, SelfDistillation) for objective in self.objectives]
        return bool(own) and all(own) and not self.features if alone else any(own)

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        context = knowing(context, workload, self)
        workload = settled(workload)
        if self.replacement is not None:
            check_student(self.replacement, workload)
            context = replace(context, origin=self.replacement, plan_before=())
            model = private_copy(self.replacement)
        original = workload.model if self.teacher is None else self.teacher
        held_on = self.new_data is not None and self.teacher is None and self.student is None
        if held_on or self._by_itself(alone=True):
            original = private_copy(model)
        self.hold(context, model)
        before_training, old = self.scores(model, workload), workload
        workload = self.on_new_data(workload)
        own, adapt = self.functions
        hints = tuple(map(Hint.of, self.features))
        kind = output_kind(workload)
        teacher = Teacher(original, workload, self.precision, seed=context.seed, remember=not hints, adapt=adapt)
        former: Teacher | None = None
        if self._by_itself() and not self._by_itself(alone=True):
            former = Teacher(private_copy(model), workload, self.precision, seed=context.seed, remember=True)
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
        with (
            teacher.form.applied(teacher.asked),
            others.applied(teacher),
            nullcontext() if former is None else former.form.applied(former.asked),
        ):
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
                was = answer.judged if former is None else former.outputs(inputs, targets, position)
                with form.exact():
                    loss = lessons.loss(output_tensor(raw), answer.judged, inputs, targets, was)
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
                teacher=type(original).__name__ + (", as it was" if held_on or self._by_itself(alone=True) else ""),
                teacher_cache=teacher.summary(),
                taught=lessons.says(),
                student=None if self.replacement is None else type(model).__name__,
                student_from=self.student if isinstance(self.student, str) else None,
            )
        )
        if others or others.left:
            context.tell(others.note(before, model))
        self.tell(context, old, before_training, model)
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


def _student(given: nn.Module | str | None) -> nn.Module | None:
    """The network that is given, or that the function of that name makes, always with the same random numbers.

    Raises ValueError for what is no module, and for a function that makes none.
    """
    if given is None:
        return None
    found: Any = given
    if isinstance(given, str):
        try:
            make = function_named(given, _STUDENT)
            with seeded(0):
                found = make()
        except WorkloadError as error:
            raise ValueError(str(error)) from error
        except Exception as error:  # it is the user's own code
            raise ValueError(f"student: {given} raised {type(error).__name__}: {first_said(error)}") from error
    if isinstance(found, nn.Module):
        return as_usual_model(found)
    if isinstance(given, str):
        raise ValueError(f"student: {given} gave {type(found).__name__}; let it return a torch.nn.Module")
    way_out = f"; call it, as in {found.__name__}()" if callable(found) and hasattr(found, "__name__") else ""
    raise ValueError(f"{_STUDENT}, or the name of a function that makes one; got {found!r}{way_out}")
