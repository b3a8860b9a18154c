"""What is wrong with a workload, found before any work is spent on it."""

import contextlib
import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.batches import Batch, Inputs, split_batch
from compressor.errors import WorkloadError
from compressor.kept_state import private_copy
from compressor.running.described import described
from compressor.running.loss_and_metric import check_judged
from compressor.workload import Workload, batch_size_of, call_model, input_tensors, output_tensor, predict

# Batches read from each set: enough to meet wrong labels, little against one epoch of training.
BATCHES_READ = 64
# Of the output's scale. Threads may sum in another order from call to call, which moves float32 by about 1e-6 of it.
REPEATABLE = 1e-4
_NAMES_SHOWN = 5
# Wrappers by class name, so that the packages that define them need not be imported.
_WRAPPERS = {
    "OptimizedModule": "model._orig_mod",
    "DistributedDataParallel": "model.module",
    "FullyShardedDataParallel": "the module that was wrapped, its weights gathered on one process",
    "FSDPModule": "a module of your own class, its weights gathered on one process",
}


def check_workload(workload: Workload) -> None:
    """Nothing, for a workload that can be compressed and judged. Raises WorkloadError for any other.

    Checked are the model (wrappers, NaN, the same output twice in eval mode), `example_inputs`, and of each set: that
    it has batches, again and again, that the model takes them, and that loss and metric are finite on them. Labels and
    targets are checked in the first 64 batches (BATCHES_READ) of each set; what stands later in a larger set is not
    read. All forwards run in eval mode without gradients; the model's modes and buffers and all random generators are
    as before afterwards.
    """
    model = workload.model
    _check_wrapper(model)
    _check_weights(model)
    _check_example(workload.example_inputs)
    with _undisturbed(model):
        outputs = _forward(model, workload.example_inputs, "example_inputs", workload.example_inputs)
        _check_repeatable(model, workload.example_inputs, outputs)
        for name in ("train", "calibration", "validation", "test"):
            _check_set(name, getattr(workload, name), workload)


def _check_wrapper(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise WorkloadError(
            f"model must be a torch.nn.Module, got {type(model).__name__}; load the weights into one first"
        )
    for path, module in model.named_modules():
        for kind in type(module).__mro__:
            if kind.__name__ in _WRAPPERS:
                where = f"the submodule {path!r}" if path else "model"
                inner = _WRAPPERS[kind.__name__]
                raise WorkloadError(
                    f"{where} is wrapped in {kind.__name__}, which hides the layers from the stages; pass the inner "
                    f"module: {inner.replace('model', path, 1) if path and inner.startswith('model') else inner}"
                )


def _check_weights(model: nn.Module) -> None:
    broken = []
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise WorkloadError(f"{name} is on the meta device and has no values; load the trained weights first")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            broken.append(f"{name} ({int((~tensor.isfinite()).sum())} of {tensor.numel()})")
    if broken:
        more = f" and {len(broken) - _NAMES_SHOWN} more" if len(broken) > _NAMES_SHOWN else ""
        raise WorkloadError(
            f"weights and buffers must be finite, got NaN or Inf in {', '.join(broken[:_NAMES_SHOWN])}{more}; "
            "load a checkpoint from before the training diverged"
        )


def _check_example(inputs: Inputs) -> None:
    leaves = input_tensors(inputs) if isinstance(inputs, Tensor | tuple | Mapping) else ()
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise WorkloadError(
            f"example_inputs must be a tensor, a tuple of tensors or a dict of tensors, got {described(inputs)}; "
            "give them in the form in which the model takes them"
        )
    if leaves[0].ndim == 0 or leaves[0].shape[0] < 2:
        raise WorkloadError(
            f"example_inputs must hold a batch of at least 2 samples, got {described(inputs)}; with 1 the exporter "
            "takes the batch size for a constant. Stack a second sample"
        )


def _check_repeatable(model: nn.Module, inputs: Inputs, first: Tensor) -> None:
    if _same(first, predict(model, inputs)):
        return
    culprits = _differing_modules(model, inputs)
    where = f" The outputs first differ in {culprits}." if culprits else ""
    raise WorkloadError(
        f"the model must give the same output twice in eval mode, and {type(model).__name__} does not.{where} Pass "
        "training=self.training to functional dropout, and draw no random numbers in eval mode"
    )


def _differing_modules(model: nn.Module, inputs: Inputs) -> str:
    # Modules finish innermost first, so the first difference is where the chance comes in.
    runs: list[list[tuple[str, Tensor | None]]] = []
    for _ in range(2):
        finished: list[tuple[str, Tensor | None]] = []
        handles = [
            module.register_forward_hook(_recording(finished, f"{path or 'forward()'} ({type(module).__name__})"))
            for path, module in model.named_modules()
        ]
        try:
            call_model(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
        runs.append(finished)
    for (label, one), (_, two) in zip(runs[0], runs[1], strict=False):
        if one is not None and two is not None and not _same(one, two):
            return label
    return ""


def _recording(finished: list[tuple[str, Tensor | None]], label: str) -> Any:
    def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            try:
                output = output_tensor(output)
            except TypeError:
                output = None
        finished.append((label, None if output is None else output.clone()))

    return record


def _same(one: Tensor, two: Tensor) -> bool:
    if one.shape != two.shape:
        return False
    a, b = one.double().nan_to_num(), two.double().nan_to_num()
    scale = float(a.abs().max()) if a.numel() else 0.0
    return bool(((a - b).abs() <= REPEATABLE * scale).all())


def _check_set(name: str, data: Iterable[Any], workload: Workload) -> None:
    if not isinstance(data, Iterable):
        raise WorkloadError(
            f"{name} must be an iterable of (inputs, targets), got {type(data).__name__}; use a DataLoader"
        )
    if isinstance(data, Iterator):
        raise WorkloadError(
            f"{name} is a {type(data).__name__}, which can be read once, and every stage reads it again; pass a "
            f"DataLoader, a list of batches, or an object whose __iter__ starts anew, such as list({name})"
        )
    batches = _read(name, data)
    if not batches:
        raise WorkloadError(
            f"{name} has no batches; give it samples, and check drop_last where it has fewer samples than one batch"
        )
    if next(iter(data), None) is None:
        raise WorkloadError(
            f"{name} gave batches at first and nothing the second time, like an exhausted generator; every stage reads "
            "it again. Pass a DataLoader, a list of batches, or an object whose __iter__ starts anew"
        )
    for inputs, _ in batches:
        _check_form(name, inputs, workload.example_inputs)
    inputs, targets = batches[0]
    outputs = _forward(workload.model, inputs, f"the first batch of {name}", workload.example_inputs)
    for number, (each, values) in enumerate(batches):
        _check_targets(f"batch {number} of {name}", each, values, outputs, workload)
    check_judged(name, outputs, targets, workload)
    if name == "train":
        _check_trainable(batches, outputs, workload)


def _read(name: str, data: Iterable[Any]) -> list[Batch]:
    batches = []
    for number, batch in enumerate(islice(data, BATCHES_READ)):
        try:
            inputs, targets = split_batch(batch)
            leaves = input_tensors(inputs)
        except (TypeError, ValueError) as error:
            raise WorkloadError(f"batch {number} of {name}: {error}") from error
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in (*leaves, targets)):
            raise WorkloadError(
                f"batch {number} of {name} must consist of tensors, got {described(inputs)} with targets "
                f"{described(targets)}; convert them in the dataset or in collate_fn"
            )
        if leaves[0].ndim == 0 or leaves[0].shape[0] == 0:
            raise WorkloadError(
                f"batch {number} of {name} holds no samples: {described(inputs)}; leave such batches out"
            )
        batches.append((inputs, targets))
    return batches


def _check_form(name: str, inputs: Inputs, example: Inputs) -> None:
    def form(value: Inputs) -> Any:
        if isinstance(value, Mapping):
            return {key: (tensor.dtype, tensor.ndim) for key, tensor in value.items()}
        return type(value), [(tensor.dtype, tensor.ndim) for tensor in input_tensors(value)]

    if form(inputs) != form(example):
        raise WorkloadError(
            f"batches of {name} must have the form, types and dimensions of example_inputs, {described(example)}; got "
            f"{described(inputs)}. Convert them in the dataset or with transform="
        )


def _forward(model: nn.Module, inputs: Inputs, label: str, example: Inputs) -> Tensor:
    try:
        raw = call_model(model, inputs)
    except Exception as error:  # a module may raise anything for inputs that are not its own
        beside = "" if inputs is example else f"; example_inputs, which it takes, are {described(example)}"
        raise WorkloadError(
            f"{type(model).__name__} does not take {label}: {described(inputs)}{beside}. "
            f"It raised {type(error).__name__}: {str(error).strip() or 'no message'}. Give inputs of the shape, dtype "
            "and device that it was trained with"
        ) from error
    try:
        output = output_tensor(raw)
    except TypeError as error:
        raise WorkloadError(f"{type(model).__name__} on {label}: {error}") from error
    if output.ndim == 0 or output.shape[0] != batch_size_of(inputs):
        raise WorkloadError(
            f"the output must have one row for each of the {batch_size_of(inputs)} samples of {label}, got shape "
            f"{tuple(output.shape)}; batches come first in every input and output"
        )
    if bool(output.isnan().any()):
        raise WorkloadError(
            f"{type(model).__name__} gives NaN for {label}: {described(inputs)}; check the inputs for NaN and scale"
        )
    return output


def _check_targets(label: str, inputs: Inputs, targets: Tensor, outputs: Tensor, workload: Workload) -> None:
    size = batch_size_of(inputs)
    if targets.ndim == 0 or targets.shape[0] != size:
        raise WorkloadError(
            f"{label} has {size} samples and targets of shape {tuple(targets.shape)}; give one target each"
        )
    if targets.is_floating_point() and not bool(targets.isfinite().all()):
        raise WorkloadError(f"{label} has targets that are NaN or Inf; leave those samples out or fill them in")
    if not workload.metric.classes:
        return
    if targets.is_floating_point() or targets.is_complex():
        raise WorkloadError(
            f"{label}: the metric {workload.metric.name} wants class indices, got targets of {targets.dtype}; "
            "use targets.long(), or a metric such as mse"
        )
    classes = outputs.shape[1] if outputs.ndim > 1 else 0
    if not classes:
        raise WorkloadError(
            f"the metric {workload.metric.name} wants outputs (batch, classes, ...), got {tuple(outputs.shape)}; "
            "give the model one output for each class"
        )
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= classes:
        raise WorkloadError(
            f"{label} has labels from {low} to {high}, and the model has {classes} outputs: labels must lie in "
            f"[0, {classes - 1}]. Renumber the labels, or give the model {high + 1} outputs"
        )


def _check_trainable(batches: list[Batch], outputs: Tensor, workload: Workload) -> None:
    complete = len(batches) < BATCHES_READ
    if workload.metric.classes and complete and outputs.shape[1] > 1:
        present = {value for _, targets in batches for value in np.unique(targets.numpy(force=True)).tolist()}
        if len(present) == 1:
            raise WorkloadError(
                f"train holds the class {present.pop()} alone, and the model has {outputs.shape[1]} outputs; a score "
                "of one class says nothing. Give samples of every class"
            )
    single = next((inputs for inputs, _ in batches if batch_size_of(inputs) == 1), None)
    if single is None:
        return
    try:
        call_model(private_copy(workload.model).train(), single)
    except ValueError as error:
        # BatchNorm over features has no variance in a batch of one.
        raise WorkloadError(
            f"train has a batch of 1 sample, which the model cannot be trained on: {error}. Set drop_last=True, or "
            "another batch_size"
        ) from error


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; modes, buffers and random generators are put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002 - user datasets draw from it
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002 - the same
