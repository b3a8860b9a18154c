"""What a teacher says: the outputs of a frozen model over a replayed stream, and the loss that compares to them."""

import zlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.batches import Inputs, Targets, target_tensors
from compressor.errors import StageError
from compressor.kept_state import private_copy
from compressor.machine import free_memory_bytes
from compressor.tensor_files import raw_bytes
from compressor.training.agreement import choose
from compressor.training.loop import Position
from compressor.training.precision import Float32, Precision, at_least_float32
from compressor.workload import Workload, input_tensors, predict

# Of the memory that would be free without them, for remembered outputs; batches beyond it are computed again.
_MEMORY_SHARE = 0.25


def soft_target_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean KL divergence from teacher to student at `temperature` (> 0); logits are (batch, classes, ...).

    The mean is over samples and positions. Scaled by temperature**2 so that gradients keep their size. Hinton et al.
    2015, arXiv:1503.02531, sec. 2.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(dim=1)
    return divergence.mean() * temperature**2


class Teacher:
    """A frozen copy of a model that answers each batch of a replayed stream once and then from memory.

    Its inner layers are computed by `precision`, as those of a model that is trained, and in float32 where targets are
    no classes: what it says is then a target itself. Its answers are float32. Every batch is compared with the one
    remembered for its position, by checksum: a stream that does not replay is noticed at its first repeated view, and
    answered by computing from then on. What is remembered lies in main memory, wherever the teacher computes, and takes
    at most a quarter of what would be free without it; what does not fit is computed again, to the same bits.
    """

    def __init__(
        self, model: nn.Module, workload: Workload, precision: Precision, *, seed: int, remember: bool
    ) -> None:
        self.model = private_copy(model).eval().requires_grad_(requires_grad=False)
        asked = precision if workload.metric.classes else Float32()
        self.form = choose(self.model, workload, asked, seed=seed).form
        self.remember = remember
        self.replays = True
        self.used_bytes = self.computed = self.recalled = 0
        self._answers: dict[Position, tuple[int, Tensor]] = {}

    def outputs(self, inputs: Inputs, targets: Targets, position: Position) -> Tensor:
        """The teacher's output for a batch, at least float32, without gradient."""
        if not (self.remember and self.replays):
            return at_least_float32(self._compute(inputs))
        checksum = _checksum((*input_tensors(inputs), *target_tensors(targets)))
        if position in self._answers:
            known, answer = self._answers[position]
            if known == checksum:
                self.recalled += 1
                return at_least_float32(answer.to(self.form.device))
            self.replays = False
            self._answers.clear()
            self.used_bytes = 0
            return at_least_float32(self._compute(inputs))
        answer = self._compute(inputs)
        size = answer.numel() * answer.element_size()
        if self.used_bytes + size <= _MEMORY_SHARE * (free_memory_bytes() + self.used_bytes):
            # A copy: a view would keep the whole of what it is cut from, and a model may write into its output again.
            self._answers[position] = (checksum, answer.to("cpu", copy=True))
            self.used_bytes += size
        return at_least_float32(answer)

    def summary(self) -> str:
        """What came of remembering, for the report."""
        if not self.remember:
            return "not used: feature hints need the teacher's inner outputs"
        if not self.replays:
            return "given up: the training data does not replay under one torch seed, so the teacher runs every epoch"
        total = self.recalled + self.computed
        return f"{self.recalled} of {total} batches answered from {self.used_bytes} bytes of memory"

    def _compute(self, inputs: Inputs) -> Tensor:
        self.computed += 1
        with torch.no_grad(), self.form.autocast():
            # One layout, remembered or not: sums in another order would have other bits.
            return predict(self.model, self.form.place(inputs)).detach().contiguous()


def check_shapes(outputs: Tensor, references: Tensor) -> None:
    """Raises StageError where the teacher's output has another shape than the student's."""
    if outputs.shape != references.shape:
        raise StageError(
            f"the teacher's output {tuple(references.shape)} must have the student's shape {tuple(outputs.shape)}; "
            "give a teacher of the same task"
        )


def _checksum(tensors: tuple[Tensor, ...]) -> int:
    """A checksum of the exact bits: sums of inputs would not notice a mirrored image."""
    state = 0
    for tensor in tensors:
        state = zlib.crc32(raw_bytes(tensor), state)
    return state
