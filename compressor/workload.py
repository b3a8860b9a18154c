"""A model with the data, the loss and the metric it is judged by."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal, TypedDict, Unpack, cast

from torch import Tensor, nn

from compressor.batches import (
    Augment,
    Batch,
    Inputs,
    judged_target,
    map_tensors,
    split_batch,
)
from compressor.checks import check_positive, explains_settings
from compressor.errors import WorkloadError
from compressor.given.datasets import sets_of_datasets
from compressor.given.free_sizes import check_free_sizes
from compressor.given.functions import (
    Function,
    answered,
    check_settings,
    checked_loss,
    metric_named,
    metric_of,
    of_judged,
    usual_loss,
)
from compressor.given.judging import JUDGED, Which, judged_by, try_judge
from compressor.given.loaders import Loaders, sets_of
from compressor.given.models import as_usual_model
from compressor.kept_state import as_before
from compressor.metrics import Metric
from compressor.outputs.kinds import Classes, Labels, Numbers, OtherOutput
from compressor.outputs.layout import NamedOutputs
from compressor.streams.passes import Mapped, one_pass

Loss = Callable[[Tensor, Tensor], Tensor]
FreeSizes = Literal["all", "batch"] | Mapping[str, Sequence[int]]

# Of CPU time. Networks with a hundred layers take 10 to 20 with everything free; those that take minutes do not end.
EXPORT_SECONDS = 120.0
# The way out for models whose outputs are no fixed number of tensors.
JUDGED_OUTPUT = (
    "Pass a module that returns the tensor to be judged, for a detector what its head gives before boxes are selected: "
    "`class Judged(torch.nn.Module)` with `def forward(self, x): return self.model.head(self.model.backbone(x))`"
)


class Settings(TypedDict, total=False):
    """Fields of a workload that may be said where it is made of loaders or datasets."""

    example_inputs: Inputs
    other_inputs: tuple[Inputs, ...]
    free_sizes: FreeSizes
    export_seconds: float
    output: Classes | Labels | Numbers | None
    others: Mapping[str, OtherOutput]


@explains_settings
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
    and the loss tell. `others` names further outputs, by key, field or place ("1"), and gives them losses of their own:
    {"depth": OtherOutput(loss=F.l1_loss)}; what is not named is held by trainings where the reference has it.
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
        named = zip(input_names(self.example_inputs), input_tensors(self.example_inputs), strict=True)
        shapes = {name: tuple(tensor.shape) for name, tensor in named if isinstance(tensor, Tensor)}
        check_free_sizes(self.free_sizes, shapes)
        check_positive(
            self.export_seconds,
            "export_seconds is the CPU time that one export may take",
            way_out=f"leave it out for {EXPORT_SECONDS:g}",
        )
        known = metric_named(self.metric)
        if known is None:
            raise WorkloadError(
                "metric must be a Metric or a name such as 'accuracy' here, got a function; Workload.from_loaders "
                "takes one, or write Metric(name=..., per_sample=...)"
            )
        object.__setattr__(self, "metric", known)
        checked_loss(self.loss)
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
        metric: str | Metric | Function = "accuracy",
        higher_is_better: bool | None = None,
        loss: Loss | None = None,
        judge: Which | None = None,
        name: str | None = None,
        batch_size: int = 128,
        transform: Callable[[Any], Any] | None = None,
        augment: Augment | None = None,
        validation_fraction: float = 0.1,
        calibration_samples: int = 512,
        seed: int = 0,
        **settings: Unpack[Settings],
    ) -> "Workload":
        """The workload of map-style datasets, or of pairs (inputs, targets) of tensors or arrays.

        Without `validation`, `validation_fraction` of train is held out for it; `calibration_samples` of the rest are
        the calibration set. Both choices follow from `seed`, and are stratified when targets are classes. If `model`
        was trained on all of `train`, pass data it has not seen as `validation`. `transform(inputs)` is applied to
        every batch, `augment(inputs, generator)` before it to training batches. Model, `metric`, `higher_is_better`,
        `loss`, `judge` and `settings` are as for `from_loaders`.
        """
        known = metric_named(metric)
        sets = sets_of_datasets(
            {"train": train, "validation": validation, "test": test},
            model=model,
            stratified=known is None or known.classes,
            batch_size=batch_size,
            transform=transform,
            augment=augment,
            validation_fraction=validation_fraction,
            calibration_samples=calibration_samples,
            seed=seed,
        )
        return cls._of(
            model,
            sets,
            metric=known or metric,
            higher_is_better=higher_is_better,
            loss=loss,
            judge=judge,
            name=name,
            **settings,
        )

    @classmethod
    def from_loaders(
        cls,
        model: nn.Module,
        *,
        train: Any,
        test: Any,
        validation: Any = None,
        calibration: Any = None,
        metric: str | Metric | Function = "accuracy",
        higher_is_better: bool | None = None,
        loss: Loss | None = None,
        judge: Which | None = None,
        name: str | None = None,
        batch_size: int = 128,
        validation_fraction: float = 0.1,
        calibration_samples: int = 512,
        seed: int = 0,
        **settings: Unpack[Settings],
    ) -> "Workload":
        """The workload of loaders: iterables of batches, functions that make one anew, tables of `datasets`.

        A batch is (inputs, targets), (input, ..., targets), or a dict with `labels`, of tensors or arrays; targets may
        be nested. float64 becomes float32. Without `validation` a part of train is held out where samples can be told
        apart, by `validation_fraction` and `seed`; `calibration` is the first `calibration_samples` of train. Tables
        come in batches of `batch_size`. `model` is unwrapped, brought to float32 and to the CPU, in a copy.

        `metric` is a name, a Metric, or a function of (outputs, targets), with `higher_is_better`. Without a `loss` it
        is the metric's usual one. `judge` says what of several outputs loss and metric see: a name, or a function of
        what the model gives. `settings` are fields of the workload: `example_inputs`, `other_inputs`, `free_sizes`,
        `export_seconds`, `output`, `others`. Raises WorkloadError, and ValueError for unknown names.
        """
        given = {"train": train, "validation": validation, "calibration": calibration, "test": test}
        known = metric_named(metric)
        sets = sets_of(
            given,
            model=model,
            batch_size=batch_size,
            validation_fraction=validation_fraction,
            calibration_samples=calibration_samples,
            seed=seed,
        )
        return cls._of(
            model,
            sets,
            metric=known or metric,
            higher_is_better=higher_is_better,
            loss=loss,
            judge=judge,
            name=name,
            **settings,
        )

    @classmethod
    def _of(
        cls,
        model: nn.Module,
        sets: Loaders,
        *,
        metric: Any,
        higher_is_better: bool | None,
        loss: Any,
        judge: Which | None,
        name: str | None,
        **settings: Unpack[Settings],
    ) -> "Workload":
        check_settings(settings, Settings.__annotations__)
        own = judged_by(as_usual_model(model), judge)
        inputs, targets = sets.first
        sets = _stepwise(own, sets)
        example, _ = sets.first
        try_judge(own, judge, lambda: call_model(own, inputs))
        if not isinstance(metric, Metric):
            outputs = answered(own, lambda: output_tensor(call_model(own, inputs)))
            metric = metric_of(metric, outputs, targets, higher_is_better)
            loss = loss or of_judged(usual_loss(metric, outputs, judged_target(targets)), targets)
        return cls(
            name=name or type(own).__name__.lower(),
            model=own,
            train=sets.train,
            calibration=sets.calibration,
            validation=sets.validation,
            test=sets.test,
            loss=checked_loss(loss) or of_judged(metric.usual_loss(), targets),
            metric=metric.settled_on(judged_target(targets)),
            **cast("Any", {"example_inputs": resize_batch(example, getattr(own, "fixed_batch", 0) or 2), **settings}),
        )


def _stepwise(model: nn.Module, sets: Loaders) -> Loaders:
    """`sets` of streams, where `model` is a file that runs in steps, with single steps to calibrate and to train on."""
    if not getattr(model, "streams", None):
        return sets
    unrolled = cast("Any", model).unrolled
    return replace(
        sets,
        train=Mapped(sets.train, unrolled),
        calibration=Mapped(sets.calibration, unrolled),
        first=unrolled(sets.first),
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
    # Files may have samples elsewhere than in rows.
    model = getattr(model, "on_samples", model)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _own(output: Any) -> Any:
    """`output` with containers of its own: a model may hand out the ones that it keeps."""
    if type(output) in {dict, OrderedDict}:
        return type(output)((key, _own(value)) for key, value in output.items())
    return [_own(value) for value in output] if type(output) is list else output


def output_tensor(output: Any) -> Tensor:
    """The tensor that loss and metric judge: the output itself, a judge's choice, `.logits`, or the first of several.

    Of a file's outputs the one that its layout names, else the one called "output" or "logits", else the first.

    Raises TypeError, with a way out, for anything else, such as a list of detections for each sample.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and isinstance(output.get(JUDGED), Tensor):
        judged: Tensor = output[JUDGED]
        return judged
    if isinstance(output, NamedOutputs):
        return output_tensor(output.judged)
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
