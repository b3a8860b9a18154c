"""What a teacher says: the outputs of a frozen model over a replayed stream."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compressor.batches import Inputs, Targets, map_tensors, target_tensors
from compressor.errors import StageError, first_said
from compressor.kept_state import private_copy
from compressor.outputs.kinds import Numbers
from compressor.outputs.returned import returned_by_name
from compressor.tensor_files import raw_bytes
from compressor.training.agreement import choose
from compressor.training.judged import output_kind
from compressor.training.passes.losses import Position
from compressor.training.precision import Float32, Form, Precision, at_least_float32
from compressor.training.remembered import Remembered
from compressor.training.replay import replayed
from compressor.workload import Workload, call_model, input_tensors, output_tensor, raw_output

# Makes a teacher's inputs of those of the workload.
Adapt = Callable[[Inputs], Inputs]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a teacher says of a batch: its judged output, and others by name."""

    judged: Tensor
    others: Mapping[str, Tensor] = field(default_factory=dict)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Answer":
        """The answer with `function` applied to each tensor."""
        return Answer(
            judged=function(self.judged), others={name: function(tensor) for name, tensor in self.others.items()}
        )


class Teacher:
    """A frozen copy of a model that answers each batch of a replayed stream once and then from memory.

    Its inner layers are computed by `precision`, as those of a model that is trained, and in float32 where outputs are
    numbers: what it says is then a target itself. Its answers are float32. Every batch is compared with the one
    remembered for its position, by checksum: a stream that does not replay is noticed at its first repeated view, and
    answered by computing from then on. What is remembered lies in main memory, wherever the teacher computes, and takes
    at most a quarter of what would be free without it; then in a temporary file, as much of the disk; what does not fit
    there is computed again. All three give the same bits.

    A model in half precision is computed in float32, one in double precision in its own. `adapt` makes its inputs of
    those of the workload; `names` are the outputs besides the judged one that it answers, too. Raises StageError where
    it does not take its inputs.
    """

    def __init__(
        self,
        model: nn.Module,
        workload: Workload,
        precision: Precision,
        *,
        seed: int,
        remember: bool,
        adapt: Adapt | None = None,
        names: tuple[str, ...] = (),
    ) -> None:
        self.model = _in_float(private_copy(model).eval().requires_grad_(requires_grad=False))
        double = any(own.dtype == torch.float64 for own in self.model.parameters())
        # What is called; modules are looked up by name in `model`.
        self.asked = self.model if adapt is None and not double else _Asked(self.model, adapt, double=double)
        if adapt is not None or model is not workload.model:
            _check_answers(self.asked, model, workload, adapted=adapt is not None)
        numbers = isinstance(output_kind(workload), Numbers)
        self.form = choose(self.asked, workload, Float32() if numbers else precision, seed=seed).form
        self.remember, self.names = remember, names
        self.replays = True
        self.computed = self.recalled = 0
        self.remembered = Remembered()
        self._checksums: dict[Position, int] = {}

    def outputs(self, inputs: Inputs, targets: Targets, position: Position) -> Tensor:
        """The judged output for a batch, at least float32, without gradient."""
        return self.answer(inputs, targets, position).judged

    def answer(self, inputs: Inputs, targets: Targets, position: Position) -> Answer:
        """The judged output and those asked for by name, at least float32, without gradient."""
        if not (self.remember and self.replays):
            return self._compute(inputs).map(at_least_float32)
        checksum = _checksum((*input_tensors(inputs), *target_tensors(targets)))
        if self._checksums.setdefault(position, checksum) != checksum:
            self.replays = False
            self.remembered.forget()
            return self._compute(inputs).map(at_least_float32)
        known = self.remembered.recall(position)
        if known is not None:
            self.recalled += 1
            answer = Answer(judged=known[0], others=dict(zip(self.names, known[1:], strict=True)))
            return answer.map(lambda tensor: at_least_float32(tensor.to(self.form.device)))
        answer = self._compute(inputs)
        self.remembered.keep(position, (answer.judged, *answer.others.values()))
        return answer.map(at_least_float32)

    def summary(self) -> str:
        """What came of remembering, for the report."""
        if not self.remember:
            return "not used: feature hints need the teacher's inner outputs"
        if not self.replays:
            return "given up: the training data does not replay under one torch seed, so the teacher runs every epoch"
        total = self.recalled + self.computed
        kept = self.remembered
        on_disk = f" and {kept.disk_bytes} of a temporary file" if kept.disk_bytes else ""
        return f"{self.recalled} of {total} batches answered from {kept.memory_bytes} bytes of memory{on_disk}"

    def _compute(self, inputs: Inputs) -> Answer:
        self.computed += 1
        with torch.no_grad(), self.form.autocast():
            raw = call_model(self.asked, self.form.place(inputs))
            others = returned_by_name(raw) if self.names else {}
            answer = Answer(judged=output_tensor(raw), others={name: others[name] for name in self.names})
        # One layout, remembered or not: sums in another order would have other bits.
        return answer.map(lambda tensor: _no_double(tensor.detach()).contiguous())


class _Asked(nn.Module):
    """A teacher that is asked in the words of the workload: its own inputs made of these, in its own precision."""

    def __init__(self, model: nn.Module, adapt: Adapt | None, *, double: bool) -> None:
        super().__init__()
        self.model, self.adapt, self.in_double = model, adapt, double

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs: Any = kwargs or (args if len(args) > 1 else args[0])
        if self.adapt is not None:
            inputs = self.adapt(inputs)
        if self.in_double:
            inputs = map_tensors(inputs, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
        return raw_output(self.model, inputs)


def _in_float(model: nn.Module) -> nn.Module:
    """`model`, a private copy, in float32 where it was shorter: half precision has no kernels for much on CPUs."""
    short = any(own.dtype in {torch.float16, torch.bfloat16} for own in model.parameters())
    return model.float() if short else model


def _no_double(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _check_answers(asked: nn.Module, model: nn.Module, workload: Workload, *, adapted: bool) -> None:
    """Raises StageError where a teacher does not take the workload's inputs, or what was made of them."""
    try:
        with replayed(0, 0), torch.no_grad():
            output_tensor(call_model(asked, Form.of(asked).place(workload.example_inputs)))
    except Exception as error:  # a module may raise anything for inputs that are not its own
        inputs = "what teacher_inputs gives" if adapted else "the inputs of the workload"
        way_out = (
            "let it give what the teacher takes"
            if adapted
            else "give teacher_inputs, a function that makes its inputs of these, or a teacher that takes them"
        )
        raise StageError(
            f"the teacher {type(model).__name__} does not take {inputs}: {type(error).__name__}: {first_said(error)}; "
            f"{way_out}"
        ) from error


def _checksum(tensors: tuple[Tensor, ...]) -> int:
    """A checksum of the exact bits: sums of inputs would not notice a mirrored image."""
    state = 0
    for tensor in tensors:
        state = zlib.crc32(raw_bytes(tensor), state)
    return state
