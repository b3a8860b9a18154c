"""What a stage is: data plus one method that turns a model into another model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from torch import nn

from compressor.errors import StageError as StageError  # noqa: PLC0414 - stages of other packages import it from here
from compressor.notes.note import Note
from compressor.target import Target
from compressor.workload import Workload

if TYPE_CHECKING:
    from compressor.files.export_memory import ExportMemory


class Effect(Enum):
    """What a stage changes; the order of stages is checked by it."""

    STRUCTURE = "structure"  # changes tensor shapes or removes modules
    VALUES = "values"  # changes weights, keeps shapes
    ENCODING = "encoding"  # changes how weights and activations are stored: from here on nothing trains or reshapes


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a stage is given besides the model and the workload.

    `seed` decides every random choice. `folder`, where there is one, is the stage's own: snapshots go there, so that a
    killed run goes on where it was. `tell` hands a note to the report: its entries stand in `details`, to which a stage
    may also add JSON values of its own. `plan` collects what structure stages decided, entries as in
    `compressor.structure.plan`; `plan_before` is what the stages before this one decided. `exports` is what the run
    remembers of its exports, for `export_onnx(model, workload, memory=context.exports)`: no state of a model is
    exported twice. `origin` is the model that the plan leads from where a student has taken the place of the
    workload's. `known` says by digests what the stage's inputs are, so that a snapshot of other ones is not
    continued: a run fills it, and `compressor.identity.workload.knowing` does elsewhere.
    """

    seed: int = 0
    target: Target = field(default_factory=Target)
    folder: Path | None = None
    progress: bool = True
    details: dict[str, Any] = field(default_factory=dict)
    plan: list[dict[str, Any]] = field(default_factory=list)
    plan_before: tuple[dict[str, Any], ...] = ()
    exports: "ExportMemory | None" = None
    origin: nn.Module | None = None
    known: Mapping[str, str] = field(default_factory=dict)

    def began_with(self, workload: Workload) -> nn.Module:
        """The model that the plan leads from, in its user's modes: the workload's, or a student in its place."""
        return workload.model if self.origin is None else self.origin

    def tell(self, note: Note) -> None:
        """Adds `note` to what the report is told; it takes the place of another of its kind."""
        self.details.update(note.to_json())


@runtime_checkable
class Stage(Protocol):
    """A frozen keyword-only dataclass with an `effect` and `apply`.

    `apply` owns `model` (a private copy) and may change it in place. It returns the model to go on with, raises
    StageError when there is nothing to do, never touches `workload.model` and never reads `workload.test`. A stage with
    a true attribute `trains` needs gradients: a model without any is refused before the first stage.
    """

    effect: ClassVar[Effect]

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module: ...


def replacement(stage: Stage) -> nn.Module | None:
    """The model that goes on in place of the one that `stage` is given, from which plans lead then; None for none.

    A stage says so with an attribute `replacement`.
    """
    found: nn.Module | None = getattr(stage, "replacement", None)
    return found


def stage_name(stage: Stage | type) -> str:
    """The name of a stage in recipes and reports: its class in snake case, `PruneChannels` -> `prune_channels`."""
    kind = stage if isinstance(stage, type) else type(stage)
    return snake_case(kind.__name__)


def snake_case(name: str) -> str:
    """`name` in words: `PruneChannels` -> `prune_channels`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def stage_parameters(stage: Any) -> dict[str, Any]:
    """The parameters of a stage as JSON values, as a recipe would give them; value objects become {name: parameters}.

    Fields that are left out of the stage's repr (a teacher given as a module) are left out here too.
    """
    return {item.name: _plain(getattr(stage, item.name)) for item in fields(stage) if item.repr}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {stage_name(type(value)): stage_parameters(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, FunctionType | type):
        return f"{value.__module__}:{value.__qualname__}"
    return value
