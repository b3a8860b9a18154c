"""A model with the data, the loss and the metric it is judged by."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compressor.batches import (
    Augment,
    Batch,
    Batches,
    Inputs,
    all_targets,
    as_tensors,
    map_tensors,
    sample_count,
    split_batch,
)
from compressor.checks import check_positive
from compressor.errors import WorkloadError
from compressor.kept_state import as_before
from compressor.metrics import Metric
from compressor.outputs.kinds import Classes, Labels, Numbers, OtherOutput
from compressor.streams.passes import one_pass

Loss = Callable[[Tensor, Tensor], Tensor]
FreeSizes = Literal["all", "batch"] | Mapping[str, Sequence[int]]

# Of CPU time. Networks with a hundred layers take 10 to 20 with everything free; those that take minutes do not end.
EXPORT_SECONDS = 120.0
# The way out for models whose outputs are no fixed number of tensors.
JUDGED_OUTPUT = (
    "Pass a module that returns the tensor to be judged, for a detector what its head gives before boxes are selected: "
    "`class Judged(torch.nn.Module)` with `def forward(self, x): return self.model.head(self.model.backbone(x))`"
)
# Exporters take smaller sizes of an example for constants.
_LEAST_FREE = 3


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is compressed and how it is judged.

    `model` is the trained reference: never modified, and the teacher of distillation. `example_inputs` (a batch of at
    least 2) is what is traced, exported and timed: a tensor, a tuple of tensors or a dict of tensors, as the model
    takes them. `other_inputs` are further calls of it, in its form or others (lengths, sizes, keywords): give some for
    whatever makes the model run other layers, for what no input reaches keeps its width. The four sets are iterables of
    (inputs, targets), or of dicts with `labels`, that can be iterated again and again: `train` for training,
    `calibration` (a slice of train) for ranges, `validation` for every decision, `test` for the report alone.
    Validation data must not have been trained on: a model that knows it scores too well on it, and every stage then
    seems to lose accuracy. A run reads every set once to know it again; a dataset or loader with a `fingerprint`, a
    text that changes with its content, is known by that.

    `free_sizes` says which sizes of the inputs the exported file leaves free besides the batch: "all" that the model
    lets vary, none ("batch"), or dimensions by input, {"input_ids": (1,)}; an input that has no name of its own is
    "input", several are "input_0", "input_1", .... `export_seconds` (> 0) is the CPU time after which the exporter is
    ended, and the file gets fixed sizes. Raises ValueError for others.

    `output` says what the judged output says, `Classes(axis=...)`, `Labels()` or `Numbers()`; None, what a first batch
    and the loss tell. `others` names further outputs, by key,
    field or place ("1"), and gives them losses of their own: {"depth": OtherOutput(loss=F.l1_loss)}; what is not
    named is held by trainings where the reference has it.
    """

    name: str
    model: nn.Module
    example_inputs: Inputs
    train: Iterable[Any]
    calibration: Iterable[Any]
    validation: Iterable[Any]
    test: Iterable[Any]
    loss: Loss
    metric: Metric
    other_inputs: tuple[Inputs, ...] = ()
    free_sizes: FreeSizes = "all"
    export_seconds: float = EXPORT_SECONDS
    output: Classes | Labels | Numbers | None = None
    others: Mapping[str, OtherOutput] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.other_inputs, tuple | list):
            raise ValueError(
                "other_inputs holds the inputs of further calls, each as the model takes them, got "
                f"{type(self.other_inputs).__name__}; put them into a tuple: other_inputs=(inputs,)"
            )
        _check_free_sizes(self.free_sizes, self.example_inputs)
        check_positive(self.export_seconds, "export_seconds is the CPU time that one export may take")
        if self.output is not None:
            object.__setattr__(self, "metric", self.metric.settled(self.output))

    @classmethod
    def from_datasets(
        cls,
        model: nn.Module,
        *,
        train: Any,
        test: Any,
        validation: Any = None,
        metric: str | Metric = "accuracy",
        loss: Loss | None = None,
        name: str | None = None,
        batch_size: int = 128,
        transform: Callable[[Any], Any] | None = None,
        augment: Augment | None = None,
        validation_fraction: float = 0.1,
        calibration_samples: int = 512,
        seed: int = 0,
        free_sizes: FreeSizes = "all",
        export_seconds: float = EXPORT_SECONDS,
        other_inputs: tuple[Inputs, ...] = (),
        output: Classes | Labels | Numbers | None = None,
        others: Mapping[str, OtherOutput] | None = None,
    ) -> "Workload":
        """The workload of map-style datasets, or of pairs (inputs, targets) of tensors or arrays.

        Without `validation`, `validation_fraction` of train is held out for it; `calibration_samples` of the rest are
        the calibration set. Both choices follow from `seed`, and are stratified when targets are classes. If `model`
        was trained on all of `train`, pass data it has not seen as `validation`. `transform(inputs)` is applied to
        every batch, `augment(inputs, generator)` before it to training batches. `other_inputs` are as the model takes
        them, and `output` and `others` are as for the workload. The loss is cross-entropy for class targets and labels,
        mean squared error otherwise, unless given.
        """
        judged = Metric.named(metric) if isinstance(metric, str) else metric
        train, test = as_tensors(train), as_tensors(test)
        for label, samples in (("train", train), ("test", test)):
            if sample_count(samples) == 0:
                raise ValueError(f"{label} has no samples; a workload needs data to train, decide and report on")
        rest = list(range(sample_count(train)))
        strata = _strata(all_targets(train)) if judged.classes else None
        if validation is None:
            if not 0 < validation_fraction < 1:
                raise ValueError(
                    f"validation_fraction is the fraction of train held out, in (0, 1); got {validation_fraction}"
                )
            rest, held_out = _split(rest, max(1, round(len(rest) * validation_fraction)), strata, seed)
            validation_batches = Batches(train, indices=held_out, batch_size=batch_size, transform=transform)
        else:
            validation_batches = Batches(validation, batch_size=batch_size, transform=transform)
        calibration = rest
        if calibration_samples < len(rest):
            _, calibration = _split(rest, calibration_samples, strata, seed + 1)
        calibration_batches = Batches(train, indices=calibration, batch_size=min(batch_size, 32), transform=transform)
        example, _ = split_batch(next(iter(calibration_batches)))
        return cls(
            name=name or type(model).__name__.lower(),
            model=model,
            example_inputs=map_tensors(example, lambda tensor: tensor[:2].clone()),
            train=Batches(
                train,
                indices=rest,
                batch_size=batch_size,
                shuffle=True,
                transform=transform,
                augment=augment,
                drop_last=True,
            ),
            calibration=calibration_batches,
            validation=validation_batches,
            test=Batches(test, batch_size=batch_size, transform=transform),
            loss=loss or judged.usual_loss(),
            metric=judged,
            free_sizes=free_sizes,
            export_seconds=export_seconds,
            other_inputs=other_inputs,
            output=output,
            others=others or {},
        )


def batches_of(data: Iterable[Any]) -> Iterable[Batch]:
    """The batches of `data` as (inputs, targets), whichever form they come in.

    What a loader keeps itself, generators and counters, follows from torch's seed in the pass and is as before then.
    """
    return map(split_batch, one_pass(data))


def first_batches(data: Iterable[Any], count: int) -> list[Batch]:
    """The first `count` batches of `data`, fewer where there are fewer."""
    with closing(one_pass(data)) as passing:
        return list(map(split_batch, islice(passing, count)))


def call_model(model: nn.Module, inputs: Inputs) -> Any:
    """The raw output of `model` for a tensor, a tuple (positional) or a dict (keywords).

    Modules in eval mode keep nothing of the call: what they cache of their weights would outlive these.
    """
    with as_before(model):
        return _own(raw_output(model, inputs))


def raw_output(model: nn.Module, inputs: Inputs) -> Any:
    """What `call_model` gives, where a model may keep what it likes."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _own(output: Any) -> Any:
    """`output` with containers of its own: a model may hand out the ones that it keeps."""
    if type(output) in {dict, OrderedDict}:
        return type(output)((key, _own(value)) for key, value in output.items())
    return [_own(value) for value in output] if type(output) is list else output


def output_tensor(output: Any) -> Tensor:
    """The tensor that loss and metric judge: the output itself, `.logits`, or the first of several.

    Raises TypeError, with a way out, for anything else, such as a list of detections for each sample.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    values = list(output.values() if isinstance(output, Mapping) else output) if isinstance(output, Iterable) else []
    if values and isinstance(values[0], Tensor):
        return values[0]
    inside = f" of {type(values[0]).__name__}" if values else ""
    keys = f" with {', '.join(map(repr, values[0]))}" if values and isinstance(values[0], Mapping) and values[0] else ""
    raise TypeError(
        f"the model must return a tensor, or a tuple or dict of tensors, of which `logits` or the first is judged; got "
        f"{type(output).__name__}{inside}{keys}. {JUDGED_OUTPUT}"
    )


def predict(model: nn.Module, inputs: Inputs) -> Tensor:
    """The judged output of `model` for `inputs`."""
    return output_tensor(call_model(model, inputs))


def input_tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    """The tensors of `inputs` in the order in which the model takes them."""
    if isinstance(inputs, Mapping):
        return tuple(inputs.values())
    return inputs if isinstance(inputs, tuple) else (inputs,)


def input_names(inputs: Inputs) -> tuple[str, ...]:
    """The names of the exported graph's inputs: a dict's keys, "input", or "input_0", "input_1", ..."""
    if isinstance(inputs, Mapping):
        return tuple(inputs)
    return tuple(f"input_{index}" for index in range(len(inputs))) if isinstance(inputs, tuple) else ("input",)


def free_axes(workload: Workload) -> tuple[frozenset[int], ...] | None:
    """The dimensions of every input that `workload.free_sizes` names, counted from 0; None for all that can vary."""
    asked, example = workload.free_sizes, workload.example_inputs
    if asked == "all":
        return None
    named: Mapping[str, Sequence[int]] = {} if isinstance(asked, str) else asked
    return tuple(
        frozenset(axis % tensor.ndim for axis in named.get(name, ()))
        for name, tensor in zip(input_names(example), input_tensors(example), strict=True)
    )


def _check_free_sizes(asked: Any, example: Inputs) -> None:
    if isinstance(asked, str) and asked in {"all", "batch"}:
        return
    if not isinstance(asked, Mapping):
        raise WorkloadError(
            'free_sizes says which sizes the file leaves free: "all", "batch", or dimensions by input, such as '
            f'{{"input": (2, 3)}}; got {asked!r}'
        )
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in zip(input_names(example), input_tensors(example), strict=True)
        if isinstance(tensor, Tensor)
    }
    for name, axes in asked.items():
        if name not in shapes:
            raise WorkloadError(f"free_sizes names the input {name!r}, and the inputs are {', '.join(shapes)}")
        shape = shapes[name]
        if isinstance(axes, str | int) or not all(
            type(axis) is int and -len(shape) <= axis < len(shape) for axis in axes
        ):
            raise WorkloadError(
                f"free_sizes holds a tuple of dimensions from 0 (the batch) to {len(shape) - 1} for {name!r}, whose "
                f"example has the shape {shape}; got {axes!r}"
            )
        short = sorted(axis for axis in axes if axis % len(shape) and shape[axis] < _LEAST_FREE)
        if short:
            raise WorkloadError(
                f"free_sizes leaves dimension {short[0]} of {name!r} free, and the example {shape} has a size below "
                f"{_LEAST_FREE} there, which exporters take for a constant; give example_inputs that are larger there"
            )


def batch_size_of(inputs: Inputs) -> int:
    """The number of samples: the first dimension of the first tensor."""
    return int(input_tensors(inputs)[0].shape[0])


def resize_batch(inputs: Inputs, size: int) -> Inputs:
    """`inputs` with `size` samples: the first ones, over again where there are fewer.

    Tensors whose first dimension is not the batch, that of the first tensor, stay as they are.
    """
    batch = batch_size_of(inputs)

    def resize(tensor: Any) -> Any:
        if tensor.ndim == 0 or tensor.shape[0] != batch:
            return tensor
        return tensor[[index % batch for index in range(size)]].contiguous()

    return map_tensors(inputs, resize)


def _strata(targets: Tensor) -> list[int] | None:
    if targets.ndim != 1 or targets.is_floating_point():
        return None
    counts = torch.bincount(targets - targets.min())
    # A class seen once cannot be on both sides of a split.
    return None if int(counts[counts > 0].min()) < 2 else [int(target) for target in targets]


def _split(indices: list[int], size: int, strata: list[int] | None, seed: int) -> tuple[list[int], list[int]]:
    from sklearn.model_selection import train_test_split

    labels = None if strata is None else [strata[index] for index in indices]
    classes = len(set(labels)) if labels else 0
    if size >= len(indices):
        raise ValueError(f"cannot hold out {size} of {len(indices)} samples; give more data or a smaller fraction")
    if size < classes or len(indices) - size < classes:
        labels = None
    rest, held_out = train_test_split(indices, test_size=size, random_state=seed, stratify=labels)
    return sorted(rest), sorted(held_out)
