"""Students that answer otherwise than their teacher are refused in a sentence that says what, and how to mend it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from compressor.errors import StageError
from compressor.stages import Distill
from compressor.training.students.fitting import check_student
from workbench.tiny import TinyResNet


class Answers(nn.Module):
    """A network whose outputs are what `form` makes of (batch, classes) logits."""

    def __init__(self, classes: int = 4, form=lambda logits: logits) -> None:
        super().__init__()
        self.linear, self.form = nn.Linear(192, classes), form

    def forward(self, images):
        return self.form(self.linear(images.flatten(1)))


def test_a_student_of_the_same_outputs_fits(tiny_workload) -> None:
    """One tensor of the teacher's shape is enough, whatever it is called."""
    check_student(Answers(), tiny_workload)
    check_student(Answers(form=lambda logits: {"logits": logits}), tiny_workload)
    check_student(TinyResNet(width=8), tiny_workload)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (Answers(5), "tells 5 classes apart, and its teacher TinyResNet 4; give the student's last layer 4 outputs"),
        (Answers(form=lambda logits: (logits, 2 * logits)), r"gives 2 outputs \(0, 1\) for .*TinyResNet 1 \(output\)"),
        (Answers(form=lambda logits: logits.unsqueeze(2)), r"judged output .* is \(2, 4, 1\) .* and \(2, 4\) of its"),
        (Answers(form=lambda logits: logits.argmax(1)), r"is \(2,\) for example_inputs, and \(2, 4\)"),
        (Answers(form=lambda logits: logits.long()), "is torch.int64, and torch.float32 in its teacher"),
        (Answers(form=lambda logits: logits[:2]), r"is \(2, 4\) for example_inputs made 3 samples, and \(3, 4\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 4)), "does not take example_inputs, which its teacher TinyResNet"),
    ],
)
def test_other_outputs_are_refused(tiny_workload, student, message) -> None:
    """Another number, shape, count of classes or kind of numbers, and inputs that it does not take."""
    workload = replace(tiny_workload, example_inputs=tiny_workload.example_inputs[:2])
    with pytest.raises(StageError, match=message):
        check_student(student, workload)


def test_the_teacher_is_no_student_of_its_own(tiny_workload) -> None:
    """One network on both sides, as the workload's model or as a teacher that is given."""
    with pytest.raises(StageError, match=r"is the workload's own \w+, which is its teacher; give a network of its own"):
        check_student(tiny_workload.model, tiny_workload)
    network = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="student and teacher are one network"):
        Distill(student=network, teacher=network)


def test_several_outputs_keep_their_names(tiny_workload) -> None:
    """Of several outputs, names and shapes are the teacher's: whoever runs the file asks for them."""
    teacher = Answers(form=lambda logits: {"logits": logits, "size": logits.norm(dim=1)})
    workload = replace(tiny_workload, model=teacher.eval())
    check_student(Answers(form=lambda logits: {"logits": logits, "size": logits.sum(dim=1)}), workload)
    with pytest.raises(StageError, match=r"gives 2 outputs \(logits, length\)"):
        check_student(Answers(form=lambda logits: {"logits": logits, "length": logits.sum(dim=1)}), workload)
    with pytest.raises(StageError, match=r"output 'size' of the student Answers is \(\d+, 1\)"):
        check_student(Answers(form=lambda logits: {"logits": logits, "size": logits.sum(1, keepdim=True)}), workload)


def test_what_is_tried_leaves_no_trace(tiny_workload) -> None:
    """Statistics, modes and random numbers are as before."""
    student = TinyResNet(width=8).train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    state = torch.get_rng_state()
    check_student(student, tiny_workload)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert student.training
    assert torch.equal(state, torch.get_rng_state())
