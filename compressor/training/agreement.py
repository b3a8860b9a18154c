"""Which number format a model trains in: whether a batch says the same in bfloat16 as in float32.

bfloat16 keeps eight bits of a number. Inner activations of most networks carry their information in far fewer, but an
output around 300 is rounded to the next 1 or 2, and a network whose inner signal is small beside its mean loses it. So
the layers that make the outputs are computed in float32, and the others in bfloat16 only where both were compared.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from compressor.batches import Batch, target_rows
from compressor.errors import StageError
from compressor.kept_state import private_copy
from compressor.outputs.kinds import Classes
from compressor.structure.calling.draws import kept_randomness
from compressor.training.precision import Form, Precision
from compressor.training.replay import kept_modes, replayed
from compressor.workload import Workload, batch_size_of, first_batches, predict, resize_batch

# Rounding of 1 % of the outputs' variance: some ten times what residual networks and transformers have.
LEAST_DECIBELS = 20.0
# Where targets are no classes, errors are to be told apart down to this part of the loss.
_LOSS_AGREES = 0.05
# Of a batch, which are compared before every epoch: more would tell little more, and a short epoch is a few batches.
_SAMPLES = 64
_NO_LAYER = "its outputs are computed outside of any layer that could be kept in float32"
# Steps of autograd that multiply matrices: a product of the outputs that no layer holds cannot be kept in float32.
_PRODUCTS = ("Addmm", "Mm", "Bmm", "Addbmm", "Baddbmm", "Mv", "Addmv", "Dot", "Convolution", "Linear", "ScaledDot")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Whether a batch said the same in both formats: `objection` is "" or why not, in words."""

    objection: str = ""
    decibels: float | None = None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The form in which a model is trained, why in words, and the agreement that was measured in decibels."""

    form: Form
    why: str
    decibels: float | None = None
    batch: Batch | None = None

    def still_agrees(self, model: nn.Module, workload: Workload, seed: int) -> Agreement:
        """Whether the batch of the choice still says the same in both formats, now that `model` has learned."""
        assert self.batch is not None  # there was one where bfloat16 was chosen
        return agreement(model, self.form, self.batch, workload, seed)


def choose(model: nn.Module, workload: Workload, precision: Precision, *, seed: int) -> Choice:
    """The form for `model` by `precision`, decided on the first batch of the training data under `seed`.

    Raises StageError where `precision` insists on bfloat16 and the model or the batch objects.
    """
    form = Form.of(model)
    if not precision.asks_for_bfloat16(form.device):
        return Choice(form=form, why=precision.declines)
    objection = _objection_to_bfloat16(model)
    if objection:
        found = Choice(form=form, why=objection)
    else:
        try:
            found = _compared(model, form, workload, seed)
        except RuntimeError as error:  # an operator that has no kernel for it
            found = Choice(form=form, why=str(error).partition("\n")[0])
    if found.form.bfloat16:
        return found
    if precision.insists:
        raise StageError(
            f"{type(model).__name__} cannot be trained in bfloat16: {found.why}; leave precision at AutoPrecision() or "
            "set Float32()"
        )
    return replace(found, why=f"not bfloat16: {found.why}")


def _compared(model: nn.Module, form: Form, workload: Workload, seed: int) -> Choice:
    """The choice of bfloat16 for the inner layers, or of `form` with the objection, after a look at the first batch."""
    with replayed(seed, 0):
        batches = first_batches(workload.train, 1)
    if not batches:
        return Choice(form=form, why="there is no batch to compare the formats on")
    inputs, targets = batches[0]
    if batch_size_of(inputs) > _SAMPLES:
        targets = target_rows(targets, slice(_SAMPLES), batch_size_of(inputs))
        inputs = resize_batch(inputs, _SAMPLES)
    layers = output_layers(model, form, (inputs, targets))
    if not layers:
        return Choice(form=form, why=_NO_LAYER)
    batch = form.place(inputs), form.place_targets(targets)
    rounded = replace(form, bfloat16=True, float32_layers=layers)
    with rounded.applied(model):
        found = agreement(model, rounded, batch, workload, seed)
    if found.objection:
        return Choice(form=form, why=found.objection, decibels=found.decibels)
    why = f"the first batch agrees with float32; {', '.join(layers)} in float32"
    return Choice(form=rounded, why=why, decibels=found.decibels, batch=batch)


def agreement(model: nn.Module, form: Form, batch: Batch, workload: Workload, seed: int) -> Agreement:
    """How well the outputs of `model`, in eval mode, for `batch` agree in `form`, a bfloat16 one, and in float32.

    `form` must be applied. What agrees is the signal around its mean: an offset, which both share, says nothing.
    """
    inputs, targets = batch
    outputs = []
    with kept_modes(model), torch.no_grad():
        model.eval()
        for context in (form.exact(), form.autocast()):
            with replayed(seed, 0), context:
                outputs.append(predict(model, inputs))
        exact, rounded = outputs
        if rounded.dtype != exact.dtype:
            return Agreement(objection=_NO_LAYER)
        classes = workload.metric.classes or isinstance(workload.output, Classes)
        decibels = signal_to_noise_db(exact, rounded, pooled=classes)
        if not decibels >= LEAST_DECIBELS:
            return Agreement(
                objection=f"the outputs of a batch differ from float32's, {decibels:.1f} dB around their mean where "
                f"{LEAST_DECIBELS:g} are wanted",
                decibels=decibels if math.isfinite(decibels) else None,
            )
        if not classes:
            with form.exact():
                ours, theirs = (float(workload.loss(output, targets)) for output in outputs)
            if not abs(theirs - ours) <= _LOSS_AGREES * abs(ours):
                return Agreement(
                    objection=f"the loss of a batch is {theirs:.4g}, and {ours:.4g} in float32", decibels=decibels
                )
    return Agreement(decibels=decibels)


def signal_to_noise_db(exact: Tensor, rounded: Tensor, *, pooled: bool) -> float:
    """The variance of `exact` over the squared difference of `rounded`, both (batch, channels, ...), in decibels.

    Of the worst channel, or with `pooled` of all channels together, which classes are: softmax compares them. Channels
    that hardly vary have no signal. minus infinity where none varies, or where infinities and NaN differ.
    """
    first, second = (output.double().reshape(len(output), -1, *output.shape[2:]) for output in (exact, rounded))
    finite = first.isfinite()
    if not torch.equal(finite, second.isfinite()) or not torch.equal(first[~finite], second[~finite]):
        return -math.inf
    first, second = (output.movedim(1, 0).flatten(1) for output in (first, second))
    finite = finite.movedim(1, 0).flatten(1)
    count = finite.sum(dim=1).clamp(min=1)
    first, second = first.where(finite, 0.0), second.where(finite, 0.0)
    means = (first.sum(dim=1) / count)[:, None]
    signal = (first - means).square().where(finite, 0.0).sum(dim=1) / count
    noise = (first - second).square().sum(dim=1) / count
    # The last bits of float32 are no signal.
    varies = signal > (torch.finfo(torch.float32).eps * means[:, 0]).square() * 10
    if not bool(varies.any()):
        return -math.inf
    signal, noise = signal[varies], noise[varies]
    ratio = signal.sum() / noise.sum() if pooled else (signal / noise).min()
    return 10 * math.log10(float(ratio)) if float(ratio) > 0 else -math.inf


def output_layers(model: nn.Module, form: Form, batch: Batch) -> tuple[str, ...]:
    """The names of the layers whose products become the judged output without another layer's product between.

    Norms, activations and sums behind a layer change nothing of that: what is added up counts with all its parts. Found
    in the graph that autograd makes of `batch`. () where an output comes from a product that no layer holds.
    """
    # A copy: what a model remembers of a pass in eval mode would hold on to the graph.
    copied = private_copy(model).eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    with kept_randomness(), torch.enable_grad(), form.exact(), _makers(copied) as makers:
        return _first_met(predict(copied, form.place(batch[0])), makers)


def _first_met(output: Tensor, makers: dict[Any, str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    open_nodes, seen = [output.grad_fn], set[Any]()
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in makers:
            found[makers[node]] = None
        elif node.name().startswith(_PRODUCTS):
            return ()
        else:
            open_nodes += [following for following, _ in node.next_functions]
    return tuple(found)


@contextmanager
def _makers(model: nn.Module) -> Iterator[dict[Any, str]]:
    """{step of autograd: the layer with weights that made it}, filled in while `model` runs.

    A layer is a module that calls no other: what it computes can be put into float32 as a whole.
    """
    made: dict[Any, str] = {}
    running: list[nn.Module] = []
    callers: set[nn.Module] = set()
    helpers = {
        part for module in model.modules() for part in getattr(module, "parametrizations", nn.ModuleDict()).modules()
    }  # what computes a layer's weight is part of the layer

    def begin(module: nn.Module, _inputs: Any) -> None:
        if module not in helpers:
            callers.update(running)
            running.append(module)

    def end(name: str) -> Any:
        def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
            if module in helpers:
                return
            running.pop()
            weights = any(parameter.ndim > 1 for parameter in module.parameters())
            if weights and module not in callers and not isinstance(module, torch.jit.ScriptModule):
                made.update({tensor.grad_fn: name for tensor in _tensors(output) if tensor.grad_fn is not None})

        return hook

    handles = [module.register_forward_pre_hook(begin) for module in model.modules()]
    handles += [module.register_forward_hook(end(name)) for name, module in model.named_modules()]
    try:
        yield made
    finally:
        for handle in handles:
            handle.remove()


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        return _tensors(tuple(output.values()))
    return [tensor for part in output for tensor in _tensors(part)] if isinstance(output, tuple | list) else []


def _objection_to_bfloat16(model: nn.Module) -> str:
    parameters = list(model.parameters())
    if not parameters or any(own.dtype != torch.float32 for own in parameters if own.is_floating_point()):
        return "its weights are not float32"
    if any(isinstance(module, nn.RNNBase | nn.RNNCellBase) for module in model.modules()):
        return "recurrent layers have no bfloat16 kernels on every device"
    return ""
