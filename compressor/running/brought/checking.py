"""Students and new data that stages bring along: refused before any work where they do not fit the workload."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from compressor.errors import AmplifiedError, ExportError, StageError, WorkloadError
from compressor.files.export import export_onnx
from compressor.kept_state import private_copy
from compressor.running.failures import explained
from compressor.running.forward_checks import check_copy, check_repeatable, check_training_step
from compressor.running.model_checks import check_model
from compressor.stage import Stage, replacement, stage_name
from compressor.training.students.fitting import check_student
from compressor.workload import Workload, first_batches

# Checks a set of a workload, which is called by a name.
CheckSet = Callable[[str, Iterable[Any], Workload, str | None], Any]


def check_brought(stages: Sequence[Stage], workload: Workload, check_set: CheckSet) -> None:
    """Raises StageError, naming the stage, where its student or its new data cannot be worked with."""
    for place, stage in enumerate(stages, start=1):
        with explained(stage_name(stage), place):
            student, new = replacement(stage), getattr(stage, "new_data", None)
            if student is not None:
                _check_student(student, workload, stage_name(stage))
            if new is not None:
                _check_data(new, workload, check_set)


def _check_student(student: nn.Module, workload: Workload, stage: str) -> None:
    try:
        check_model(student)
        check_student(student, workload)
        own = replace(workload, model=private_copy(student).eval())
        check_repeatable(own.model, workload.example_inputs)
        check_copy(own.model, workload.example_inputs)
        check_training_step(own, first_batches(workload.train, 1)[0], stage)
    except WorkloadError as error:
        raise StageError(f"the student {type(student).__name__}: {error.sentence}") from error
    try:
        export_onnx(own.model, own)
    except AmplifiedError:
        return  # its weights do that, which training changes
    except ExportError as error:
        raise StageError(f"the student {error.sentence}") from error


def _check_data(new: Any, workload: Workload, check_set: CheckSet) -> None:
    try:
        for name, data in (("the new data", new.train), ("what is held out of the new data", new.validation)):
            check_set(name, data, workload, None)
    except WorkloadError as error:
        raise StageError(error.sentence) from error
