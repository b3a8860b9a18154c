"""What is wrong with a workload, found before any work is spent on it."""

import contextlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from compressor.batches import Batch, Inputs, judged_target, split_batch, target_tensors
from compressor.errors import CompressorError, WorkloadError
from compressor.kept_state import private_copy
from compressor.outputs.kinds import Classes
from compressor.outputs.returned import returned_by_name
from compressor.progress.bars import tick, waiting
from compressor.running.brought.checking import check_brought
from compressor.running.described import described
from compressor.running.doubtful_outputs import (
    check_classes,
    check_enough,
    check_finite_targets,
    check_log_probabilities,
    telling,
    warn_of_outputs,
    warn_of_scale,
)
from compressor.running.failures import FAULTS, in_short, layer_of
from compressor.running.forward_checks import check_copy, check_repeatable, check_training_step, checked_forward
from compressor.running.loss_and_metric import check_judged, check_lengths
from compressor.running.model_checks import check_model
from compressor.stage import Stage, replacement, stage_name
from compressor.streams.passes import KEEP_TWO, one_pass
from compressor.training.judged import found, has_loss, settled
from compressor.training.loss_state import LossState
from compressor.training.streams import LONGEST, PATIENCE_SECONDS, ends
from compressor.workload import Workload, batch_size_of, call_model, input_tensors

# Batches read from each set: enough to meet wrong labels, little against one epoch of training.
BATCHES_READ = 64
_SETS = ("train", "calibration", "validation", "test")
# What is scored goes first where it has steps: it says what outputs are.
_SETS_OF_STREAMS = ("validation", "test", "train", "calibration")
_DTYPES = {
    torch.float32, torch.float64, torch.float16, torch.bool,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64,
}  # fmt: skip


@waiting("checking the workload", at_once=False)
def check_workload(workload: Workload, stages: Sequence[Stage] = ()) -> Workload:
    """`workload`, with what its outputs say, if it can be compressed and judged. Raises WorkloadError for any other.

    Checked are the model (what cannot be copied, traced, run or stored; NaN; the same output twice in eval mode under
    one seed, in a copy too), `example_inputs` and `other_inputs`, and of each set: that it has batches, again and
    again, that the model takes them, and that loss and metric are finite on them and judge every output by its own
    target. Where one of `stages` trains, one step of training is tried on a copy. Labels and targets are checked in the
    first 64 batches (BATCHES_READ) of each set; what stands later in a larger set is not read. All other forwards run
    in eval mode without gradients; the model's modes, weights and buffers and all random generators are as before
    afterwards.
    """
    model, example = workload.model, workload.example_inputs
    try:
        check_model(model)
        _check_example(example, model)
        with _undisturbed(model), LossState.of(workload.loss).kept():
            judged = checked_forward(model, example, "example_inputs", example)
            _check_others(workload, judged)
            for number, inputs in enumerate(workload.other_inputs):
                _check_inputs(f"other_inputs[{number}]", inputs)
                checked_forward(model, inputs, f"other_inputs[{number}]", example)
            check_repeatable(model, example)
            check_copy(model, example)
            for name in _SETS_OF_STREAMS if _is_stream(model) else _SETS:
                workload = _check_set(name, getattr(workload, name), workload, _trainer(stages))
                _check_end(name, getattr(workload, name), stages)
            check_brought(stages, workload, _check_set)
    except CompressorError:
        raise
    except FAULTS as error:  # a model, data and settings of somebody else may raise anything
        layer = layer_of(error)
        raise WorkloadError(
            f"the workload cannot be tried{f', in {layer}' if layer else ''}: {in_short(error)}; a model must take "
            "eval(), train() and its own inputs, again and again"
        ) from error
    return workload


def _trainer(stages: Sequence[Stage]) -> str | None:
    """The first of `stages` that trains the model as it is given, with what the caller left unfrozen."""
    for stage in stages:
        if replacement(stage) is not None:
            return None  # which is looked at by itself
        if getattr(stage, "trains", False):
            return stage_name(stage)
        if not type(stage).__module__.startswith("compressor."):
            return None  # who knows what it does to the model
    return None


def _check_inputs(label: str, inputs: Inputs) -> tuple[Tensor, ...]:
    leaves = input_tensors(inputs) if isinstance(inputs, Tensor | tuple | Mapping) else ()
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise WorkloadError(
            f"{label} must be a tensor, a tuple of tensors or a dict of tensors, got {described(inputs)}; "
            "give them in the form in which the model takes them"
        )
    _check_tensors(label, leaves)
    return leaves


def _check_example(inputs: Inputs, model: nn.Module) -> None:
    leaves = _check_inputs("example_inputs", inputs)
    # Files need not be exported any more.
    fixed = getattr(model, "fixed_batch", 0)
    if leaves[0].ndim == 0 or leaves[0].shape[0] < (fixed or 2):
        raise WorkloadError(
            f"example_inputs must hold a batch of at least 2 samples, got {described(inputs)}; with 1 the exporter "
            "takes the batch size for a constant. Stack a second sample"
        )


def _check_others(workload: Workload, judged: Tensor) -> None:
    """Raises WorkloadError where `workload.others` names what the model does not give beside the judged output."""
    if not workload.others:
        return
    given = returned_by_name(call_model(workload.model, workload.example_inputs))
    known = [name for name, tensor in given.items() if tensor.shape != judged.shape or not torch.equal(tensor, judged)]
    for name in workload.others:
        if name not in known:
            what = "the judged one, whose loss is `loss`" if name in given else "none of its outputs"
            raise WorkloadError(
                f"others names {name!r}, which is {what}; beside the judged output the model gives "
                f"{', '.join(map(repr, known)) or 'none'}"
            )


def _check_tensors(label: str, tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = "quantized" if tensor.is_quantized else "on the meta device" if tensor.is_meta else tensor.layout
            raise WorkloadError(f"{label} must be dense tensors with values, got {kind}; convert them with to_dense()")
        if tensor.dtype not in _DTYPES:
            real = "use .float()" if tensor.is_floating_point() else "use .long()"
            way_out = "give real numbers, such as view_as_real()" if tensor.is_complex() else real
            raise WorkloadError(
                f"{label} must be numbers that ONNX Runtime and numpy have, got {described(tensor)}; {way_out} in the "
                "dataset or with transform="
            )
        if tensor.requires_grad:
            raise WorkloadError(f"{label} must be data, got {described(tensor)} with requires_grad; use .detach()")
        if tensor.is_inference():
            raise WorkloadError(
                f"{label} was made in torch.inference_mode(), and nothing can be trained on it; make it outside, or "
                "use .clone() outside"
            )


def _check_set(name: str, data: Iterable[Any], workload: Workload, trainer: str | None) -> Workload:
    """`workload`, settled by the first set that is looked at. Raises WorkloadError for a set that cannot be used."""
    if not isinstance(data, Iterable):
        way_out = f"for a function that makes batches, {name}=Made(function) of compressor.streams.passes"
        raise WorkloadError(
            f"{name} must be an iterable of (inputs, targets), got {type(data).__name__}; "
            f"{way_out if callable(data) else 'use a DataLoader'}"
        )
    if isinstance(data, Iterator):
        raise WorkloadError(
            f"{name} is a {type(data).__name__}, an iterator: passes over it share one place, or there is one pass "
            "alone, and every stage reads it from the start; pass a DataLoader, a list of batches such as "
            f"list({name}), or an object whose __iter__ gives a new iterator"
        )
    batches = _read(name, data)
    if not batches:
        raise WorkloadError(
            f"{name} has no batches; give it samples, and check drop_last where it has fewer samples than one batch"
        )
    if not _first(name, data, 1):
        raise WorkloadError(
            f"{name} gave batches at first and nothing the second time, like an exhausted generator; every stage reads "
            "it again. Pass a DataLoader, a list of batches, or an object whose __iter__ starts anew"
        )
    for inputs, _ in batches:
        _check_form(name, _one_step(workload.model, inputs), workload.example_inputs)
    _check_not_finite(name, batches, workload)
    inputs, targets = telling(batches)
    if _is_stream(workload.model) and name in ("train", "calibration"):
        # Single steps, of which the judged output has a dimension less.
        checked_forward(workload.model, inputs, f"the first batch of {name}", workload.example_inputs)
        return workload
    check_enough(name, batches)
    warn_of_scale(name, inputs, workload.example_inputs)
    outputs = checked_forward(workload.model, inputs, f"the first batch of {name}", workload.example_inputs)
    check_log_probabilities(workload, outputs)
    if not has_loss(workload, outputs, targets):
        # All of its labels may be ignored: it says nothing then of what outputs are.
        for each, values in batches[1:]:
            answered = checked_forward(workload.model, each, f"a batch of {name}", workload.example_inputs)
            if has_loss(workload, answered, values):
                inputs, targets, outputs = each, values, answered
                break
    soft = name == "train" and _are_soft(outputs, judged_target(targets), workload)
    if workload.output is None and isinstance(judged_target(targets), Tensor):
        workload = settled(workload, found(workload, outputs, targets))
        warn_of_outputs(workload, inputs, outputs, targets)
    for number, (each, values) in enumerate(batches):
        _check_targets(f"batch {number} of {name}", each, judged_target(values), outputs, workload, soft=soft)
    check_judged(name, outputs, targets, workload, by_metric=not soft)
    if name in ("validation", "test"):
        shape = judged_target(targets).shape[1:]
        other = next((batch for batch in batches if judged_target(batch[1]).shape[1:] != shape), None)
        if other is not None:
            answer = partial(
                checked_forward, workload.model, label=f"a batch of {name}", example=workload.example_inputs
            )
            check_lengths(name, workload, (inputs, targets), other, answer)
    if name == "train":
        _check_trainable(batches, outputs, workload)
        several = next((batch for batch in batches if batch_size_of(batch[0]) > 1), None)
        if trainer is not None and several is not None:
            check_training_step(workload, several, trainer)
    return workload


def _check_not_finite(name: str, batches: list[Batch], workload: Workload) -> None:
    """Raises WorkloadError where inputs that are NaN or Inf make outputs NaN, which are scored as anything."""
    for number, (inputs, _) in enumerate(batches):
        if any(leaf.is_floating_point() and not bool(leaf.isfinite().all()) for leaf in input_tensors(inputs)):
            label = f"batch {number} of {name}, whose inputs hold NaN or Inf"
            checked_forward(workload.model, _one_step(workload.model, inputs), label, workload.example_inputs)


def _is_stream(model: nn.Module) -> bool:
    return bool(getattr(model, "streams", None))


def _one_step(model: nn.Module, inputs: Inputs) -> Inputs:
    """The first step of `inputs` where they are streams."""
    step = getattr(model, "one_step", None)
    return cast("Inputs", step(inputs)) if step is not None and _is_stream(model) else inputs


def _check_end(name: str, data: Iterable[Any], stages: Sequence[Stage]) -> None:
    """Raises WorkloadError for data without an end where somebody needs a pass over them."""
    needs = [stage_name(stage) for stage in stages if getattr(stage, "trains", False) and not _counts_steps(stage)]
    if (name == "train" and not needs) or ends(data):
        return
    who = f"an epoch of {', '.join(needs)} is" if name == "train" else "every score and every range is from"
    steps = "set steps= there, or " if name == "train" else ""
    raise WorkloadError(
        f"{name} says no length, and did not end within {LONGEST} batches or {PATIENCE_SECONDS:.0f} s; {who} a pass "
        f"over it: {steps}give it a __len__ and an end, as itertools.islice(stream, count) has in an __iter__"
    )


def _counts_steps(stage: Stage) -> bool:
    return getattr(stage, "steps", None) is not None


def _read(name: str, data: Iterable[Any]) -> list[Batch]:
    batches = []
    for number, batch in enumerate(_first(name, data, BATCHES_READ)):
        label = f"batch {number} of {name}"
        try:
            inputs, targets = split_batch(batch)
            leaves = input_tensors(inputs)
        except (TypeError, ValueError) as error:
            raise WorkloadError(f"{label}: {error}") from error
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in (*leaves, *target_tensors(targets))):
            raise WorkloadError(
                f"{label} must consist of tensors, got {described(inputs)} with targets {described(targets)}; convert "
                "them in the dataset or in collate_fn"
            )
        if leaves[0].ndim == 0 or leaves[0].shape[0] == 0:
            raise WorkloadError(f"{label} holds no samples: {described(inputs)}; leave such batches out")
        _check_tensors(label, (*leaves, *target_tensors(targets)))
        batches.append((inputs, targets))
    return batches


def _first(name: str, data: Iterable[Any], count: int) -> list[Any]:
    """The first `count` batches as they come, fewer where there are fewer."""
    found = []
    try:
        with contextlib.closing(one_pass(data)) as passing:
            for batch in islice(passing, count):
                tick()
                found.append(batch)
    except FAULTS as error:  # a dataset may raise anything
        layer = layer_of(error)
        raise WorkloadError(
            f"{name} cannot be read{f', in {layer}' if layer else ''}: {in_short(error)}; look at what the dataset, "
            "its transforms or collate_fn give for this batch"
        ) from error
    return found


def _check_form(name: str, inputs: Inputs, example: Inputs) -> None:
    def form(value: Inputs) -> Any:
        if isinstance(value, Mapping):
            return {key: (tensor.dtype, tensor.ndim) for key, tensor in value.items()}
        return type(value), [(tensor.dtype, tensor.ndim) for tensor in input_tensors(value)]

    if form(inputs) != form(example):
        raise WorkloadError(
            f"batches of {name} must have the form, types and dimensions of example_inputs, {described(example)}; got "
            f"{described(inputs)}. {_third(inputs, example)}Convert them in the dataset or with transform="
        )


def _third(inputs: Inputs, example: Inputs) -> str:
    if not isinstance(inputs, tuple) or isinstance(example, tuple):
        return ""
    return f"A batch of {len(inputs) + 1} is taken for {len(inputs)} inputs and a target: {KEEP_TWO}. "


def _are_soft(outputs: Tensor, targets: Tensor, workload: Workload) -> bool:
    """Whether `targets` are shares of every class, as mixing makes them: losses take them, and no metric sees them."""
    return workload.metric.classes and targets.is_floating_point() and targets.shape == outputs.shape


def _check_targets(
    label: str, inputs: Inputs, targets: Tensor, outputs: Tensor, workload: Workload, *, soft: bool = False
) -> None:
    size = batch_size_of(inputs)
    if targets.ndim == 0 or targets.shape[0] != size:
        raise WorkloadError(
            f"{label} has {size} samples and targets of shape {tuple(targets.shape)}; give one target each"
        )
    check_finite_targets(label, inputs, targets, workload)
    if not workload.metric.classes or soft:
        return
    check_classes(label, targets, outputs, workload)


def _check_trainable(batches: list[Batch], outputs: Tensor, workload: Workload) -> None:
    complete = len(batches) < BATCHES_READ
    kind = workload.output if isinstance(workload.output, Classes) else Classes()
    if workload.metric.classes and complete and outputs.shape[kind.axis] > 1:
        judged = [judged_target(targets) for _, targets in batches]
        present = {value for targets in judged for value in np.unique(targets.numpy(force=True)).tolist()}
        present -= set(kind.ignored)
        if len(present) == 1:
            raise WorkloadError(
                f"train holds the class {present.pop()} alone, and the model has {outputs.shape[kind.axis]} outputs; a "
                "score of one class says nothing. Give samples of every class"
            )
    # One among larger ones is left out by a training, and said there.
    if any(batch_size_of(inputs) > 1 for inputs, _ in batches):
        return
    try:
        call_model(private_copy(workload.model).train(), batches[0][0])
    except ValueError as error:
        # BatchNorm over features has no variance in a batch of one.
        raise WorkloadError(
            f"the batches of train have 1 sample each, which the model cannot be trained on: {error}. Set another "
            "batch_size"
        ) from error


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; modes, weights, buffers and random generators are put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    # Embeddings with max_norm write into their weights, in eval mode too.
    tensors = [
        (tensor, tensor._version, tensor.detach().clone())  # noqa: SLF001 - torch has no public name for it
        for tensor in (*model.parameters(), *model.buffers())
    ]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002 - user datasets draw from it
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for tensor, version, before in tensors:
                if tensor._version != version:  # noqa: SLF001 - the same
                    tensor.copy_(before)
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002 - the same
