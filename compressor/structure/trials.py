"""Whether a model whose structure was changed still works: it runs, has gradients, and computes what it should."""

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from compressor.batches import Inputs, map_tensors
from compressor.kept_state import forget_
from compressor.structure.source_lines import told
from compressor.workload import batch_size_of, predict

_OWN = re.compile(r"\w+Backward\d+|torch::autograd::(AccumulateGrad|CopySlices|CopyBackwards)")
# From this mean size of the weights of a layer on, in elements, a trial is worth all threads.
_LARGE = 1 << 18


def fault(model: nn.Module, inputs: Inputs, wanted: dict[int, Tensor]) -> str | None:
    """Why `model`, in eval mode, does not work on `inputs`, or None where it does.

    `wanted` are the outputs of the unchanged model by batch size, from `outputs_at`; their shapes must be kept,
    and a backward pass must run through at each size. The reason is the first line of the error. Gradients of `model`
    are dropped, and its `requires_grad` flags end as they were.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(parameter.is_floating_point())
        with _few_threads(model), torch.enable_grad():
            for size, before in wanted.items():
                forget_(model)
                output = predict(model, _head(inputs, size))
                if output.shape != before.shape:
                    return f"the output becomes {tuple(output.shape)} instead of {tuple(before.shape)}"
                torch.autograd.backward(output.float().sum())
    except Exception as error:  # noqa: BLE001 - a user's model may raise anything
        return told(error)
    finally:
        for parameter, flag in flags:
            parameter.grad = None
            parameter.requires_grad_(flag)
    return None


def difference(narrow: nn.Module, masked: nn.Module, inputs: Inputs, *, samples: int, backward: bool) -> str | None:
    """Why `narrow` is not `masked` with its zeros taken out, or None where it is; both in eval mode.

    Two samples in `narrow` must give for the first what it alone gives in `masked`: that says it of both batch sizes.
    Where it does not, because samples are mixed, each size is compared with itself; with `samples` 2 the larger always
    is. With `backward`, a backward pass must run where derivatives are not all torch's own. `requires_grad` flags end
    as they were, and gradients are left alone.
    """
    run = _with_gradients if backward else _without_gradients
    with _few_threads(masked):
        two = _run(run, narrow, _head(inputs, 2))
        if isinstance(two, str):
            # Of one sample the message is clearer: two may hide a fixed size.
            one = _run(_without_gradients, narrow, _head(inputs, 1))
            return one if isinstance(one, str) else two
        whole = _run(_without_gradients, masked, _head(inputs, samples))
        if isinstance(whole, str):
            return f"with its channels at zero the model does not run: {whole}"
        if samples == 1 and _counts(two, 2) and _counts(whole, 1) and same_outputs(two[:1], whole) is None:
            return None
        one = _run(_without_gradients, narrow, _head(inputs, 1))
        if isinstance(one, str):
            return one
        outputs = {1: one, 2: two}
        reason = same_outputs(outputs[samples], whole)
        alike = _counts(one, 1) and _counts(two, 2) and same_outputs(two[:1], one) is None
        if reason is None and not alike:
            other = 3 - samples
            whole = _run(_without_gradients, masked, _head(inputs, other))
            reason = whole if isinstance(whole, str) else same_outputs(outputs[other], whole)
    return reason


def _run(run: Callable[[nn.Module, Inputs], Tensor], model: nn.Module, inputs: Inputs) -> Tensor | str:
    """What `model` gives, or the first line of the error."""
    forget_(model)
    try:
        return run(model, inputs)
    except Exception as error:  # noqa: BLE001 - a user's model may raise anything
        return told(error)


def _counts(output: Tensor, samples: int) -> bool:
    """Whether the first dimension of `output` can be that of the samples."""
    return output.ndim > 0 and len(output) == samples


def _without_gradients(model: nn.Module, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return predict(model, inputs)


def _with_gradients(model: nn.Module, inputs: Inputs) -> Tensor:
    """The output, once a backward pass ran through it: to vectors where that is possible, which costs half.

    It is not run where all derivatives are torch's own, whose shapes follow from those of the forward pass.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    weights = [parameter for parameter, _ in flags if parameter.is_floating_point()]
    vectors = [weight for weight in weights if weight.ndim == 1]
    try:
        for wanted in (vectors, weights):
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            for weight in wanted:
                weight.requires_grad_(True)
            with torch.enable_grad():
                output = predict(model, inputs)
                if output.requires_grad or wanted is weights:
                    if _has_derivatives_of_its_own(output):
                        torch.autograd.grad(output.float().sum(), wanted, allow_unused=True)
                    return output.detach()
                forget_(model)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    raise AssertionError("the second round always ends it")


def _has_derivatives_of_its_own(output: Tensor) -> bool:
    """Whether `output` came through a function whose derivative is not known to be torch's."""
    if output.grad_fn is None:
        return True
    found, rest = {output.grad_fn}, [output.grad_fn]
    while rest:
        node = rest.pop()
        # Torch numbers its own; a Python function's name is that of its class, and what C++ adds has others.
        if isinstance(node, BackwardCFunction) or not _OWN.fullmatch(node.name()):
            return True
        for before, _ in node.next_functions:
            if before is not None and before not in found:
                found.add(before)
                rest.append(before)
    return False


def outputs_at(model: nn.Module, inputs: Inputs, sizes: tuple[int, ...] = (1, 2)) -> dict[int, Tensor]:
    """The judged outputs of `model` for the first samples of `inputs`, by batch size."""
    with _few_threads(model), torch.no_grad():
        outputs = {size: predict(model, _head(inputs, size)) for size in sizes}
    forget_(model)
    return outputs


def same_outputs(narrow: Tensor, masked: Tensor) -> str | None:
    """Why what a narrowed model gave is not what the whole one gave with the removed weights at zero, or None."""
    if narrow.shape != masked.shape:
        return f"the output becomes {tuple(narrow.shape)} instead of {tuple(masked.shape)}"
    if not masked.is_floating_point():
        return None if torch.equal(narrow, masked) else "narrowed, it computes something else than with zeros"
    finite = masked.isfinite()
    if not torch.equal(finite, narrow.isfinite()):
        return "narrowed, it computes infinities or NaN that it does not compute with zeros"
    narrow, masked = narrow[finite], masked[finite]
    tolerance = float(masked.abs().max()) * torch.finfo(masked.dtype).eps ** 0.5 if masked.numel() else 0.0
    if masked.numel() and not float((narrow - masked).abs().max()) <= tolerance:
        return "without these channels it computes something else than with them at zero"
    return None


@contextmanager
def collector_paused() -> Iterator[None]:
    """The collector of reference cycles off: it would walk through everything imported for what is freed without it.

    One such walk takes half as long as tracing a ResNet-50 and trying a cut.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode, with the fused attention path off, which reads weights without calling their layers.

    Every module is back in its own mode afterwards.
    """
    modes = [(module, module.training) for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, mode in modes:
            module.training = mode


def _head(inputs: Inputs, size: int) -> Inputs:
    return map_tensors(inputs, lambda tensor: tensor[: min(size, batch_size_of(inputs))])


@contextmanager
def _few_threads(model: nn.Module) -> Iterator[None]:
    """One thread for a model of small weights, as many as there are for one of large weights."""
    sizes = [parameter.numel() for parameter in model.parameters() if parameter.ndim > 1]
    threads = torch.get_num_threads()
    # Two samples are too little to share; on a busy machine the threads of many small operations wait for each other
    # thirty times as long as one thread works.
    if sum(sizes) < _LARGE * len(sizes):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
