"""Whether a student answers as its teacher does: by as many outputs, of the same shapes, on the same inputs."""

import torch
from torch import Tensor, nn

from compressor.batches import Inputs
from compressor.errors import StageError, first_said
from compressor.kept_state import private_copy
from compressor.outputs.kinds import Classes
from compressor.outputs.returned import returned_by_name
from compressor.training.precision import Form
from compressor.training.replay import replayed
from compressor.workload import Workload, batch_size_of, call_model, output_tensor, resize_batch

Outputs = dict[str, Tensor]


def check_student(student: nn.Module, workload: Workload) -> None:
    """Nothing where `student` can take the place of `workload.model`, which teaches it.

    Tried are `example_inputs`, in another number of samples too, and `other_inputs`. Raises StageError where the
    student does not take them, and where its outputs have another number, shape or kind of numbers than the teacher's;
    and where the two are one network.
    """
    if student is workload.model:
        raise StageError(
            f"the student is the workload's own {type(student).__name__}, which is its teacher; give a network of its "
            "own, or leave student out to distill into the model itself"
        )
    own, teacher = private_copy(student).eval(), private_copy(workload.model).eval()
    example = workload.example_inputs
    calls = {"example_inputs": example}
    if not getattr(teacher, "fixed_batch", 0):
        more = batch_size_of(example) + 1
        calls[f"example_inputs made {more} samples"] = resize_batch(example, more)
    calls |= {f"other_inputs[{number}]": inputs for number, inputs in enumerate(workload.other_inputs)}
    for label, inputs in calls.items():
        with replayed(0, 0), torch.no_grad():
            wanted, judged = _outputs(teacher, inputs)
            try:
                given, own_judged = _outputs(own, inputs)
            except Exception as error:  # a module may raise anything for inputs that are not its own
                raise StageError(
                    f"the student {type(student).__name__} does not take {label}, which its teacher "
                    f"{type(workload.model).__name__} takes: {type(error).__name__}: {first_said(error)}; give a "
                    "student of the same inputs"
                ) from error
        who = _Both(student, workload, label)
        who.check_number(given, wanted)
        who.check_tensor("the judged output", own_judged, judged, axis=_class_axis(workload, judged))
        if len(wanted) > 1:
            for name in wanted:
                who.check_tensor(f"output {name!r}", given[name], wanted[name])


class _Both:
    """The two on one call, for sentences about them."""

    def __init__(self, student: nn.Module, workload: Workload, label: str) -> None:
        self.student, self.teacher, self.label = type(student).__name__, type(workload.model).__name__, label

    def check_number(self, given: Outputs, wanted: Outputs) -> None:
        """Raises StageError where the outputs are not as many, or where several have other names."""
        if len(given) == len(wanted) and (len(wanted) == 1 or given.keys() == wanted.keys()):
            return
        raise StageError(
            f"the student {self.student} gives {len(given)} outputs ({', '.join(given)}) for {self.label}, and its "
            f"teacher {self.teacher} {len(wanted)} ({', '.join(wanted)}); let the student return as many, by the same "
            "names, for whoever runs the file asks for them"
        )

    def check_tensor(self, what: str, own: Tensor, wanted: Tensor, *, axis: int | None = None) -> None:
        """Raises StageError where an output of both has another shape, or holds whole numbers in one of them alone."""
        if own.shape == wanted.shape and own.is_floating_point() == wanted.is_floating_point():
            return
        if own.shape == wanted.shape:
            raise StageError(
                f"{what} of the student {self.student} is {own.dtype}, and {wanted.dtype} in its teacher "
                f"{self.teacher}; let it return the same kind of numbers"
            )
        differing = [place for place in range(min(own.ndim, wanted.ndim)) if own.shape[place] != wanted.shape[place]]
        if axis is not None and own.ndim == wanted.ndim and differing == [axis]:
            raise StageError(
                f"the student {self.student} tells {own.shape[axis]} classes apart, and its teacher {self.teacher} "
                f"{wanted.shape[axis]}; give the student's last layer {wanted.shape[axis]} outputs"
            )
        raise StageError(
            f"{what} of the student {self.student} is {tuple(own.shape)} for {self.label}, and {tuple(wanted.shape)} "
            f"of its teacher {self.teacher}; give a student of the same task, whose outputs have the teacher's shapes"
        )


def _outputs(model: nn.Module, inputs: Inputs) -> tuple[Outputs, Tensor]:
    """All outputs by name, and the judged one."""
    raw = call_model(model, Form.of(model).place(inputs))
    return returned_by_name(raw), output_tensor(raw)


def _class_axis(workload: Workload, judged: Tensor) -> int | None:
    """Where the classes lie in the judged output; None where it says something else."""
    kind = Classes() if workload.output is None and workload.metric.classes else workload.output
    return kind.axis % judged.ndim if isinstance(kind, Classes) and judged.ndim else None
