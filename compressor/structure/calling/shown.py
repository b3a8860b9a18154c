"""What is shown of a model when its structure is traced: example inputs, inputs of other shapes, one training step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from compressor.batches import Inputs, Targets, map_tensors, target_rows
from compressor.structure.calling.draws import kept_randomness
from compressor.workload import Workload, batch_size_of, first_batches, input_tensors, resize_batch

# Batches of each set whose shapes are looked at, and how many of them are shown beside the example.
_READ, _TRAINED = 8, 4
_OTHERS = 4
# Batches of each set, and how many of their samples, that are shown where two samples leave layers out of reach.
_BATCHES, _MANY = 3, 32
# Samples of a training step: statistics over a batch want more than two.
_STEP = 4


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """One batch that the model is trained on, and its loss; without a `loss` the model is only called."""

    inputs: Inputs
    targets: Targets | None = None
    loss: Callable[[Tensor, Targets], Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The calls by which a model shows its structure: `example` and `others`, two samples each, and `step` in training.

    `batches` have many samples, for where two leave layers out of reach. Without a `step` the model is called in train
    mode on the example, as far as it can be.
    """

    example: Inputs
    others: tuple[Inputs, ...] = ()
    batches: tuple[Inputs, ...] = ()
    step: TrainingStep | None = None

    @classmethod
    def of(cls, inputs: "Inputs | Shown") -> "Shown":
        """`inputs` as the only example, where they are not shown with more already."""
        return inputs if isinstance(inputs, Shown) else cls(example=first_samples(inputs, 2))

    def steps(self) -> list[TrainingStep]:
        """The training step on few samples, and on all, for models that need as many."""
        if self.step is None:
            return [TrainingStep(inputs=self.example)]
        few = min(_STEP, batch_size_of(self.step.inputs))
        samples = batch_size_of(self.step.inputs)
        inputs, targets = first_samples(self.step.inputs, few), self.step.targets
        cut = None if targets is None else target_rows(targets, slice(few), samples)
        small = replace(self.step, inputs=inputs, targets=cut)
        return [small, self.step] if few < samples else [small]


def shown_by(workload: Workload) -> Shown:
    """The example and the other inputs of `workload`, further forms that its data have, and a batch of its training.

    Of the first batches of calibration and train, the smallest and the largest are shown, and one of every other form.
    Random generators are as before.
    """
    with kept_randomness():
        training = first_batches(workload.train, _TRAINED)
        read = [*first_batches(workload.calibration, _READ), *training]
    example = first_samples(workload.example_inputs, 2)
    others = [first_samples(inputs, 2) for inputs in workload.other_inputs]
    known = {_form(inputs) for inputs in (example, *others)}
    fresh = {_form(inputs): inputs for inputs, _ in read}
    by_size = sorted((inputs for form, inputs in fresh.items() if form not in known), key=_size)
    kinds: dict[Any, list[Inputs]] = {}
    for inputs in by_size:
        kinds.setdefault(_kind(inputs), []).append(inputs)
    ends = [inputs for alike in kinds.values() for inputs in (alike[0], *alike[-1:][: len(alike) - 1])]
    others += [resize_batch(inputs, 2) for inputs in ends[:_OTHERS]]
    step = None
    if training:
        inputs, targets = training[0]
        step = TrainingStep(inputs=inputs, targets=targets, loss=workload.loss)
    whole = tuple(first_samples(inputs, _MANY) for inputs, _ in (*read[:_BATCHES], *training[:_BATCHES]))
    return Shown(example=example, others=tuple(others), batches=whole, step=step)


def first_samples(inputs: Inputs, count: int) -> Inputs:
    """The first `count` samples of `inputs`, or all; tensors that do not hold one for each sample stay as they are."""
    batch = batch_size_of(inputs)
    return map_tensors(inputs, lambda tensor: tensor[:count] if tensor.ndim and len(tensor) == batch else tensor)


def _kind(inputs: Inputs) -> Any:
    """What the inputs are, whatever their sizes."""
    names = tuple(inputs) if isinstance(inputs, Mapping) else len(input_tensors(inputs))
    return names, tuple((tensor.dtype, tensor.ndim) for tensor in input_tensors(inputs))


def _form(inputs: Inputs) -> Any:
    """Everything about the inputs but their values and how many samples there are."""
    return _kind(inputs), tuple(tuple(tensor.shape[1:]) for tensor in input_tensors(inputs))


def _size(inputs: Inputs) -> int:
    return sum(tensor[:1].numel() for tensor in input_tensors(inputs))
