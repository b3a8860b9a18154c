"""Whether a model computes the same twice, in a copy too, and whether it can be trained: tried before any work."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from compressor.batches import Batch, Inputs, map_tensors
from compressor.errors import WorkloadError
from compressor.kept_state import as_before, private_copy
from compressor.progress.bars import tick
from compressor.running.described import described, inputs_that_fit, listed
from compressor.running.failures import FAULTS, in_short, lacks_memory, layer_of
from compressor.running.model_checks import COPIES, memory_of
from compressor.streams.passes import KEEP_TWO
from compressor.structure.calling.compiled import compiles_again
from compressor.structure.tensor_ids import tensors_of
from compressor.training.replay import replayed
from compressor.workload import (
    JUDGED_OUTPUT,
    Workload,
    batch_size_of,
    call_model,
    input_tensors,
    output_tensor,
    predict,
    raw_output,
    resize_batch,
)

# Of the output's scale. Threads may sum in another order from call to call, which moves float32 by about 1e-6 of it.
REPEATABLE = 1e-4


def checked_forward(model: nn.Module, inputs: Inputs, label: str, example: Inputs) -> Tensor:
    """The judged output of `model` for `inputs`, called `label` in refusals. Raises WorkloadError where there is none.

    `example` are the inputs that it is known to take, or `inputs` themselves.
    """
    tick()
    try:
        raw = call_model(model, inputs)
    except FAULTS as error:  # a module may raise anything for inputs that are not its own
        beside = "" if inputs is example else f"; example_inputs, which it takes, are {described(example)}"
        layer = layer_of(error)
        way_out = inputs_that_fit(model, inputs, error)
        if isinstance(error, TypeError) and isinstance(inputs, tuple):
            way_out = f"A batch of {len(inputs) + 1} is taken for {len(inputs)} inputs and a target: {KEEP_TWO}"
        if lacks_memory(error):
            way_out = "The memory did not suffice: give smaller batches"
        raise WorkloadError(
            f"{type(model).__name__} does not take {label}: {described(inputs)}{beside}. "
            f"It raised {in_short(error)}{f' in {layer}' if layer else ''}. {way_out}"
        ) from error
    _check_number_of_outputs(model, inputs, raw, label)
    try:
        output = output_tensor(raw)
    except TypeError as error:
        raise WorkloadError(f"{type(model).__name__} on {label}: {error}") from error
    if output.ndim == 0 or output.shape[0] != batch_size_of(inputs):
        raise WorkloadError(
            f"the output must have one row for each of the {batch_size_of(inputs)} samples of {label}, got shape "
            f"{tuple(output.shape)}; batches come first in every input and output"
        )
    if output.is_complex():
        raise WorkloadError(
            f"the output must be real numbers, which ONNX Runtime has, got {described(output)} for {label}; let "
            "forward() return torch.view_as_real() of it, or .abs()"
        )
    if bool(output.isnan().any()):
        raise WorkloadError(
            f"{type(model).__name__} gives NaN for {label}: {described(inputs)}; check the inputs for NaN and scale"
        )
    return output


def _check_number_of_outputs(model: nn.Module, inputs: Inputs, raw: Any, label: str) -> None:
    """Raises WorkloadError for a list with an entry for each sample: it has no first output that could be judged."""
    samples = batch_size_of(inputs)
    if not isinstance(raw, list | tuple) or len(raw) != samples or samples < 2:
        return
    try:
        fewer = call_model(model, resize_batch(inputs, samples - 1))
    except FAULTS:  # a module may raise anything; which batches it takes is another check's
        return
    if isinstance(fewer, list | tuple) and len(fewer) == samples - 1:
        kinds = ", ".join(sorted({type(entry).__name__ for entry in raw}))
        raise WorkloadError(
            f"{type(model).__name__} returns a list with an entry ({kinds}) for each of the {samples} samples of "
            f"{label}, and an ONNX file has a fixed number of outputs, a row for every sample in each. " + JUDGED_OUTPUT
        )


def check_repeatable(model: nn.Module, inputs: Inputs) -> None:
    """Nothing where `model` gives one output for `inputs` twice. Raises WorkloadError with what makes the difference.

    Refused are models that write into their inputs, that draw random numbers in eval mode (an ONNX file draws others:
    it could be compared with nothing), and that change from call to call.
    """
    given = map_tensors(inputs, torch.clone)
    first, second = predict(model, given).clone(), predict(model, given)
    if _same(first, second):
        return
    kind = type(model).__name__
    pairs = zip(input_tensors(given), input_tensors(inputs), strict=True)
    if not all(torch.equal(one, other) for one, other in pairs):
        raise WorkloadError(
            f"{kind} writes into its inputs, and gives another output for what is left there; let forward() begin with "
            "a copy: x = x.clone()"
        )
    culprits = _differing_modules(model, inputs)
    where = f" The outputs first differ in {culprits}." if culprits else ""
    if _same(_seeded(model, inputs), _seeded(model, inputs)):
        raise WorkloadError(
            f"the model must give the same output twice in eval mode, and {kind} draws random numbers there: an ONNX "
            f"file draws others, and could be compared with nothing.{where} Pass training=self.training to functional "
            "dropout, give the mean instead of a sample, or take the noise as an input"
        )
    raise WorkloadError(
        f"the model must give the same output twice in eval mode, and {kind} does not, nor under one seed.{where} Let "
        "it keep nothing from call to call in eval mode, and draw no numbers from a generator of its own"
    )


def _seeded(model: nn.Module, inputs: Inputs) -> Tensor:
    with replayed(0, 0):
        return predict(model, inputs).clone()


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


def check_copy(model: nn.Module, inputs: Inputs) -> None:
    """Nothing where a copy of `model` computes the same, by its own weights. Raises WorkloadError otherwise.

    A lambda, a hook or a closure that holds the model computes with the weights of the original in every copy: what a
    stage does to the copy has no effect there.
    """
    copied, watch = private_copy(model), _Readers(tensors_of(model))
    wanted = _seeded(model, inputs)
    try:
        with watch:
            found = _seeded(copied, inputs)
    except FAULTS as error:  # it runs, but not while it is watched: compiled code, for instance
        compiles_again(error)
        found = _seeded(copied, inputs)
    if watch.read:
        raise WorkloadError(
            f"a copy of the model computes with {listed(sorted(watch.read))} of the original: a lambda, a hook or "
            "another function holds the model or its layers, and stages work on copies; make it a method of the "
            "module, or functools.partial of one"
        )
    if not _same(wanted, found):
        raise WorkloadError(f"a copy of the model computes something else than the model; {COPIES}")


class _Readers(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch does not annotate it
    """Notes the tensors, of those given by name, that operators read or write."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # the same
        self.read: set[str] = set()
        self._names = {memory_of(tensor): name for name, tensor in tensors.items() if tensor.numel()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        for leaf in tree_leaves((args, kwargs or {})):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided and leaf.numel():
                name = self._names.get(memory_of(leaf))
                if name is not None:
                    self.read.add(name)
        return func(*args, **(kwargs or {}))


def check_training_step(workload: Workload, batch: Batch, stage: str) -> None:
    """Nothing where `batch` gives the weights of a copy of the model gradients, as `stage` needs.

    Raises WorkloadError where it does not, or where the loss reads what forward leaves in the original.
    """
    _check_left_behind(workload, batch, stage)
    model, (inputs, targets) = private_copy(workload.model).train(), batch
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise WorkloadError(
            f"{stage} trains, and every parameter of {type(model).__name__} is frozen; set requires_grad_(True) on "
            f"what may change, or leave {stage} out"
        )
    try:
        with replayed(0, 0), torch.enable_grad():
            outputs = predict(model, inputs)
            loss = workload.loss(outputs, targets)
            if isinstance(loss, Tensor) and loss.requires_grad:
                # What forward makes and wants gradients of, as networks do whose layers are computed again.
                made = [tensor for tensor in _learning(outputs) if not isinstance(tensor, nn.Parameter)]
                own = {id(tensor) for tensor in (*model.parameters(), *made)}
                _check_strangers(workload, _learning(loss), own, stage)
                loss.backward()  # type: ignore[no-untyped-call] # torch does not annotate it
                _check_gradients(model, loss, stage)
                return
    except WorkloadError:
        raise
    except FAULTS as error:  # a user's model or loss may raise anything
        layer = layer_of(error)
        raise WorkloadError(
            f"{stage} trains, and a training step of {type(model).__name__} on a batch of "
            f"{batch_size_of(inputs)} samples fails{f', in {layer}' if layer else ''}: {in_short(error)}. "
            f"{_training_way_out(error)}, or leave {stage} out"
        ) from error
    culprit = "the loss" if outputs.requires_grad else f"the output of {type(model).__name__}"
    raise WorkloadError(
        f"{stage} trains, and {culprit} depends on no weight by a gradient: it is computed without torch, under "
        "no_grad, from .detach(), .item() or argmax; compute it by differentiable operators of torch, or leave "
        f"{stage} out"
    )


def _learning(loss: Tensor) -> list[Tensor]:
    """The tensors that `loss`, or another result, gives gradients."""
    found, met, open_nodes = [], set(), [loss.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in met:
            continue
        met.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        open_nodes += [following for following, _ in node.next_functions]
    return found


def _check_strangers(workload: Workload, learning: list[Tensor], own: set[int], stage: str) -> None:
    """Raises WorkloadError where the loss would teach what is no part of the model that is trained."""
    original = {id(parameter) for parameter in workload.model.parameters()}
    strangers = [tensor for tensor in learning if id(tensor) not in own]
    if any(id(tensor) in original for tensor in strangers):
        raise WorkloadError(
            f"{stage} trains, and the loss reads weights of workload.model: stages train copies, which it would not "
            "see. Weight decay is a setting of the stage (weight_decay=); what else the loss needs of the model, let "
            "forward() return"
        )
    if strangers:
        named = workload.loss.named_parameters() if isinstance(workload.loss, nn.Module) else ()
        names = [name for name, parameter in named if any(parameter is tensor for tensor in strangers)]
        which = listed(names) if names else ", ".join(described(tensor) for tensor in strangers[:3])
        raise WorkloadError(
            f"{stage} trains the model alone, and the loss has parameters of its own that want gradients: {which}. "
            "Where they are as they should be (a network that compares features, centres that are learnt), freeze "
            "them: loss.requires_grad_(False); what is to be learned with the model, make a part of it, and let "
            f"forward() return what the loss needs; or leave {stage} out"
        )


def _check_left_behind(workload: Workload, batch: Batch, stage: str) -> None:
    """Raises WorkloadError where the loss reads what forward leaves in attributes of workload.model.

    A term that a mixture of experts adds for its balance, for instance, or a divergence: a training runs a copy, whose
    attributes the loss does not see, and what it reads is that of some earlier batch and has no gradient.
    """
    model, (inputs, targets) = workload.model, batch
    before = {(path, name): _leaves(value) for path, name, value in _attributes(model)}
    with replayed(0, 0), torch.no_grad(), as_before(model):
        outputs = output_tensor(raw_output(model, inputs))
        for path, name, value in _attributes(model):
            former, now = before.get((path, name), []), _leaves(value)
            if len(former) == len(now) and all(one is other for one, other in zip(former, now, strict=True)):
                continue
            if _is_read(partial(workload.loss, outputs, targets), vars(model.get_submodule(path)), name):
                raise WorkloadError(
                    f"{stage} trains, and the loss reads {f'{path}.{name}' if path else name}, which forward() leaves "
                    "in workload.model: stages train copies, whose attributes it does not see. Let forward() return "
                    "what it is computed from beside the output, with a row for each sample, and name its loss: "
                    f"Workload(others={{...: OtherOutput(loss=...)}}); or leave {stage} out"
                )


def _is_read(function: Callable[[], Any], holder: dict[str, Any], name: str) -> bool:
    """Whether `function` gives another number where the numbers of an attribute are none."""
    value, found = holder[name], []
    for given in (value, value, tree_map(_spoiled, value)):
        try:
            holder[name] = given
            with replayed(0, 0):
                found.append(function())
        except FAULTS:  # whatever is wrong with the loss is another check's to say
            return False
        finally:
            holder[name] = value
    if not all(isinstance(one, Tensor) for one in found) or not torch.equal(found[0], found[1]):
        return False  # it says another number at every call
    return not torch.equal(found[1], found[2])


def _attributes(model: nn.Module) -> list[tuple[str, str, Any]]:
    """(path, name, value) of what modules hold beside parameters, buffers and modules."""
    own = set(vars(nn.Module()))
    return [
        (path, name, value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if name not in own
    ]


def _leaves(value: Any) -> list[Tensor]:
    """The tensors of fractions that lie in `value`; none where it is no container that torch knows."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _spoiled(leaf: Any) -> Any:
    return torch.full_like(leaf, math.nan) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _check_gradients(model: nn.Module, loss: Tensor, stage: str) -> None:
    bad = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
        and not bool(
            parameter.grad.coalesce().values().isfinite().all()
            if parameter.grad.is_sparse
            else parameter.grad.isfinite().all()
        )
    ]
    if bad and bool(loss.isfinite()):
        raise WorkloadError(
            f"{stage} trains, and the loss of the first batch is {float(loss.detach()):.4g} while its gradient is not "
            f"finite, in {listed(bad)}: that of a root or a logarithm at 0, of a division by 0, also where the result "
            "is not used (torch.where); keep them away from 0, as clamp(min=1e-6) does"
        )


def _training_way_out(error: BaseException) -> str:
    if "inplace operation" in str(error):
        return (
            "What forward() writes into (x[:, :4] = ..., x += ...) backward still needs: that is fine without "
            "training; make a new tensor there, as torch.cat does, or write into a clone of what was read"
        )
    if lacks_memory(error):
        return "The memory did not suffice: give smaller batches"
    if "more than 1 value per channel" in str(error):
        return "Set drop_last=True, or another batch_size"
    return "Train it for one step by hand to see it, and put it right"
