"""Whether a model whose structure was changed still works: it runs, has gradients, and computes what it should."""

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from compressor.batches import Inputs, map_tensors
from compressor.kept_state import forget_
from compressor.outputs.returned import returned_tensors
from compressor.structure.calling.draws import EvenDraws, seeded
from compressor.structure.source_lines import told
from compressor.workload import batch_size_of, call_model, output_tensor, predict

_OWN = re.compile(r"\w+Backward\d+|torch::autograd::(AccumulateGrad|CopySlices|CopyBackwards)")
# From this mean size of the weights of a layer on, in elements, a trial is worth all threads.
_LARGE = 1 << 18
_MASKED_FAILS = "with its channels at zero the model does not run"


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
    is. With `backward`, a backward pass must run where derivatives are not all torch's own. Random numbers are drawn
    under one seed, and where the narrowed model draws fewer of them, as one number for all elements. `requires_grad`
    flags end as they were, and gradients are left alone.
    """
    return _under_one_seed(lambda even: _Comparison(narrow, masked, inputs, even).fault(samples, backward=backward))


def difference_on(narrow: nn.Module, masked: nn.Module, inputs: Inputs) -> str | None:
    """Why `narrow` is not `masked` with its zeros taken out on these very `inputs`, or None; both in eval mode."""
    return _under_one_seed(lambda even: _Comparison(narrow, masked, inputs, even).fault_on_all())


def difference_within(
    narrow: nn.Module, masked: nn.Module, inputs: Inputs, context: Callable[[], AbstractContextManager[Any]]
) -> str | None:
    """What `difference_on` says within `context`; None also where `masked` fails there: it may never be so."""
    return _under_one_seed(lambda even: _Comparison(narrow, masked, inputs, even, context).fault_on_all())


def _under_one_seed(compare: Callable[[bool], tuple[str | None, bool]]) -> str | None:
    reason, drawn = compare(False)
    return compare(True)[0] if reason is not None and drawn else reason


class _Comparison:
    """A narrowed and a masked model side by side, within `context`.

    `even` draws one number for all elements of a tensor.
    """

    def __init__(
        self,
        narrow: nn.Module,
        masked: nn.Module,
        inputs: Inputs,
        even: bool,  # noqa: FBT001 - private
        context: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        self._narrow, self._masked, self._inputs, self._even = narrow, masked, inputs, even
        self._context, self._drawn = context, False

    def fault(self, samples: int, *, backward: bool) -> tuple[str | None, bool]:
        """The reason of `difference`, and whether random numbers were drawn."""
        with _few_threads(self._masked):
            return self._fault(samples, backward=backward), self._drawn

    def fault_on_all(self) -> tuple[str | None, bool]:
        """The reason of `difference_on`, and whether random numbers were drawn."""
        with _few_threads(self._masked):
            narrow = self._run(self._narrow, self._inputs)
            if isinstance(narrow, str) and self._context is None:
                return narrow, self._drawn
            whole = self._run(self._masked, self._inputs)
            if isinstance(whole, str):
                return (f"{_MASKED_FAILS}: {whole}" if self._context is None else None), self._drawn
            return (narrow if isinstance(narrow, str) else same_returned(narrow, whole)), self._drawn

    def _fault(self, samples: int, *, backward: bool) -> str | None:
        two = self._run(self._narrow, _head(self._inputs, 2), backward=backward)
        if isinstance(two, str):
            # Of one sample the message is clearer: two may hide a fixed size.
            one = self._run(self._narrow, _head(self._inputs, 1))
            return one if isinstance(one, str) else two
        whole = self._run(self._masked, _head(self._inputs, samples))
        if isinstance(whole, str):
            return f"{_MASKED_FAILS}: {whole}"
        firsts = [tensor[:1] for tensor in two] if _counts(two, 2) else []
        if samples == 1 and firsts and _counts(whole, 1) and same_returned(firsts, whole) is None:
            return None
        one = self._run(self._narrow, _head(self._inputs, 1))
        if isinstance(one, str):
            return one
        outputs = {1: one, 2: two}
        reason = same_returned(outputs[samples], whole)
        alike = bool(firsts) and _counts(one, 1) and same_returned(firsts, one) is None
        if reason is None and not alike:
            other = 3 - samples
            whole = self._run(self._masked, _head(self._inputs, other))
            reason = whole if isinstance(whole, str) else same_returned(outputs[other], whole)
        return reason

    def _run(self, model: nn.Module, inputs: Inputs, *, backward: bool = False) -> list[Tensor] | str:
        """What `model` gives, or the first line of the error."""
        forget_(model)
        try:
            with self._draws(), self._context() if self._context is not None else nullcontext():
                return (_with_gradients if backward else _without_gradients)(model, inputs)
        except Exception as error:  # noqa: BLE001 - a user's model may raise anything
            return told(error)

    @contextmanager
    def _draws(self) -> Iterator[None]:
        with seeded() as draws, EvenDraws() if self._even else nullcontext():
            yield
        self._drawn |= draws.any


def _counts(outputs: list[Tensor], samples: int) -> bool:
    """Whether the first dimension of all `outputs` can be that of the samples."""
    return all(output.ndim > 0 and len(output) == samples for output in outputs)


def _without_gradients(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad():
        return returned_tensors(call_model(model, inputs))


def _with_gradients(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The outputs, once a backward pass ran through the judged one: to vectors where that can be, which costs half.

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
                raw = call_model(model, inputs)
                output = output_tensor(raw)
                if output.requires_grad or wanted is weights:
                    if _has_derivatives_of_its_own(output):
                        torch.autograd.grad(output.float().sum(), wanted, allow_unused=True)
                    return [tensor.detach() for tensor in returned_tensors(raw)]
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


def same_returned(narrow: list[Tensor], masked: list[Tensor]) -> str | None:
    """Why what a narrowed model returned is not what the masked one did, or None: all tensors, in their order."""
    if len(narrow) != len(masked):
        return f"narrowed, it returns {len(narrow)} tensors instead of {len(masked)}"
    reasons = (same_outputs(one, other) for one, other in zip(narrow, masked, strict=True))
    return next((reason for reason in reasons if reason is not None), None)


def same_outputs(narrow: Tensor, masked: Tensor) -> str | None:
    """Why what a narrowed model gave is not what the whole one gave with the removed weights at zero, or None."""
    if narrow.shape != masked.shape:
        return f"the output becomes {tuple(narrow.shape)} instead of {tuple(masked.shape)}"
    if masked.is_complex() and narrow.is_complex():
        return same_outputs(torch.view_as_real(narrow), torch.view_as_real(masked))
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
