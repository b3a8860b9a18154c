"""Prunes a network to half through the public stage, and checks on its own that the result is right.

Nothing of the engine that found the plan is trusted: the plan alone, as JSON, says what was removed. Zeroing exactly
that in the original must give the pruned network's outputs in double precision.
"""

import copy
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

from compressor.batches import Inputs, map_tensors
from compressor.errors import ExportError, StageError
from compressor.files.export import export_onnx
from compressor.metrics import Metric
from compressor.pruning.ranking.criteria import L1
from compressor.pruning.ranking.scope import PerLayer
from compressor.runtime import OnnxModule
from compressor.stage import Context
from compressor.stages.channel_pruning import PruneChannels
from compressor.structure.plan import Entry, apply_plan_
from compressor.structure.tensor_ids import tensors_of
from compressor.structure.trials import evaluating
from compressor.workload import Workload, batch_size_of, call_model, output_tensor, predict
from workbench.same_data import same_data
from workbench.zoo.architecture import Architecture

HALF = PruneChannels(remove=0.5, criterion=L1(), scope=PerLayer(), align=1)
# Of the largest output, in double precision: thousands of roundings, and far below what any lost channel moves.
SAME = 1e-8
# What zeroing half of the network must at least move the output by; otherwise agreement would show nothing.
MOVED = 1e-4
# Of the largest output, in single precision, between ONNX Runtime and torch.
RUNTIME_SAME = 1e-3


class WrongError(AssertionError):
    """What a pruned network does that it may not do."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one architecture: "pruned", "refused" or "failed"; `reason` says why, or what is wrong."""

    name: str
    outcome: str
    reason: str = ""
    parameters_before: int = 0
    parameters_after: int = 0
    groups_pruned: int = 0
    locked: dict[str, str]
    exporter: str = ""
    prune_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def parameter_fraction_removed(self) -> float:
        """Of all parameters, ties counted once, in [0, 1)."""
        return 1 - self.parameters_after / self.parameters_before if self.parameters_before else 0.0


Prune = Callable[[nn.Module, Workload, Context], nn.Module]


def check(architecture: Architecture, *, prune: Prune = HALF.apply, export: bool = True) -> Outcome:
    """The outcome for `architecture`; every promise that is broken makes it "failed", none is raised.

    Promises: the plan alone rebuilds the pruned network to the bit; it computes what the original computes with the
    removed slices at zero; it trains in the same parameters; ties stay; the exported file agrees at other batch sizes;
    the output keeps its shape; at least `architecture.removes` of the parameters went; and no network is refused unless
    it is known to be, for the reason that is known.
    """
    start = process_time()
    torch.manual_seed(0)
    model = randomized_(architecture.build()).eval()
    workload = workload_of(architecture, model)
    context = Context(progress=False)
    pruned = copy.deepcopy(model)
    facts: dict[str, Any] = dict.fromkeys(("parameters_before", "parameters_after"), parameter_count(model))
    try:
        begin = process_time()
        pruned = prune(pruned, workload, context).eval()
        facts |= {
            "prune_seconds": process_time() - begin,
            "parameters_after": parameter_count(pruned),
            "groups_pruned": sum(entry["kind"] == "slice" for entry in context.plan),
        }
        check_structure(model, pruned, context.plan, workload)
        if export:
            facts["exporter"] = check_export(pruned, workload, architecture) if architecture.exports else "none"
            _require(architecture.exports or not exports(model, workload), "the original does export: say so")
        _require(architecture.refuses is None, f"it was expected to be refused: {architecture.refuses}")
        removed = 1 - parameter_count(pruned) / parameter_count(model)
        _require(
            removed >= architecture.removes,
            f"{removed:.1%} of the parameters went, not even {architecture.removes:.0%}",
        )
        reasons = "; ".join(reasons_of(context).values())
        _require(
            architecture.locks is None or bool(re.search(str(architecture.locks), reasons)),
            f"{architecture.locks!r} is not among the reasons for locks: {reasons}",
        )
        outcome, reason = "pruned", ""
    except StageError as error:
        known = architecture.refuses is not None and re.search(architecture.refuses, str(error))
        outcome, reason = ("refused" if known else "failed"), str(error)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is the outcome
        outcome, reason = "failed", f"{type(error).__name__}: {error}"
    return Outcome(
        name=architecture.name,
        outcome=outcome,
        reason=reason,
        locked=reasons_of(context),
        seconds=process_time() - start,
        **facts,
    )


def reasons_of(context: Context) -> dict[str, str]:
    """Why layers were left alone, by layer, as the stage told the report."""
    return {item["layer"]: item["reason"] for item in context.details.get("locked", ())}


def parameter_count(model: nn.Module) -> int:
    """The number of parameters, ties counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def randomized_(model: nn.Module) -> nn.Module:
    """`model` itself with weights under which every part shows in the output: biases and statistics are not zero.

    Matrices keep their inputs' scale (fan-in), scales of norms lie around 1.
    """
    generator = torch.Generator().manual_seed(0)
    scales = {
        id(module.weight)
        for module in model.modules()
        if "Norm" in type(module).__name__ and isinstance(getattr(module, "weight", None), Tensor)
    }
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point() or (name in dict(model.named_buffers()) and "running" not in name):
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(0.5 + noise.abs())
            elif id(value) in scales:
                value.copy_(1 + 0.3 * noise)
            elif value.ndim > 1:
                fan_in = math.prod(value.shape[1:])
                value.copy_(noise * 1.4 / fan_in**0.5)
            else:
                value.copy_(0.3 * noise)
    return model


def workload_of(architecture: Architecture, model: nn.Module) -> Workload:
    """`model` with random inputs of its kind; the loss draws its outputs, of any shape, to zero."""
    data = [(inputs, torch.zeros(4)) for inputs in (architecture.sample(4), architecture.sample(4))]
    metric = Metric(name="size of the outputs", per_sample=_size_of, higher_is_better=False, bounded=False)
    return same_data(
        model, data, architecture.sample(2), loss=lambda outputs, _: outputs.float().square().mean(), metric=metric
    )


def _size_of(outputs: Tensor, targets: Tensor) -> Tensor:
    del targets
    return outputs.float().square().flatten(1).mean(dim=1)


def check_structure(model: nn.Module, pruned: nn.Module, plan: list[Entry], workload: Workload) -> None:
    """Raises WrongError where `pruned` is not `model` with what `plan` says at zero, or does not train like it."""
    plan = json.loads(json.dumps(plan, allow_nan=False))
    inputs = workload.example_inputs
    rebuilt = apply_plan_(copy.deepcopy(model), plan).eval()
    _require(_shapes(rebuilt) == _shapes(pruned), "the plan alone gives other shapes")
    with torch.no_grad():
        _require(torch.equal(predict(rebuilt, inputs), predict(pruned, inputs)), "the plan alone gives other outputs")
    _require(_ties(pruned) == _ties(model), "tied tensors are no longer tied, or others are")
    wide, precise = _double(inputs), copy.deepcopy(model).double()
    preparing = [entry for entry in plan if entry["kind"] != "slice"]
    # Prepared in double precision, for what is computed once, then, is rounded as it is computed.
    prepared = apply_plan_(copy.deepcopy(precise), preparing).eval()
    with evaluating(model), evaluating(precise), torch.no_grad():
        original = outputs(precise, wide)
        unmasked = outputs(prepared, wide)
        _require(_difference(unmasked, original) <= SAME, "preparing it for pruning alone changed what it computes")
        masked_model = zeroed_(copy.deepcopy(prepared), plan)
        narrow_model = apply_plan_(copy.deepcopy(precise), plan).eval()
        for few in (*_singles(workload), inputs):
            wide = _double(few)
            masked, narrow = outputs(masked_model, wide), outputs(narrow_model, wide)
            difference = _difference(narrow, masked)
            _require(difference <= SAME, f"it differs from the masked original by {difference:.2g} of the output")
        moved = _difference(narrow, original)
        _require(moved > MOVED, f"removing half moved the output by {moved:.2g} of it: the comparison shows nothing")
    with torch.no_grad():  # with torch's fused attention, which reads weights past their layers
        fused = _difference([value.double() for value in outputs(pruned, inputs)], narrow)
        rounding = _difference([value.double() for value in outputs(model, inputs)], original)
    # Some networks of random weights are chaotic: the original's own rounding moves them further than a lost channel.
    limit = max(RUNTIME_SAME, rounding)
    _require(fused <= limit, f"in single precision it differs by {fused:.2g} of the output")
    _require(
        _trained(pruned, workload) == _trained(prepared.float(), workload),
        "other parameters have gradients than before",
    )


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Every tensor of floats that `model` returns, the judged and the others."""
    return list(_tensors(call_model(model, inputs)))


def _double(inputs: Inputs) -> Inputs:
    return map_tensors(inputs, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def _singles(workload: Workload) -> Iterator[Inputs]:
    """Every sample of calibration alone: batches of one, and whatever branches on values it takes."""
    for inputs, _ in workload.calibration:
        for row in range(batch_size_of(inputs)):
            yield map_tensors(inputs, lambda tensor, row=row: tensor[row : row + 1])


def _tensors(raw: Any) -> Iterator[Tensor]:
    if isinstance(raw, Tensor):
        yield from [raw] if raw.is_floating_point() else []
    elif isinstance(raw, Mapping | list | tuple):
        for value in raw.values() if isinstance(raw, Mapping) else raw:
            yield from _tensors(value)


def zeroed_(model: nn.Module, plan: list[Entry]) -> nn.Module:
    """`model` itself, of full width, with zeros wherever `plan` removes; later entries' indices are mapped back."""
    left: dict[str, dict[int, list[int]]] = {}
    tensors = tensors_of(model)
    for entry in plan:
        for name, dims in entry.get("tensors", {}).items() if entry["kind"] == "slice" else ():
            for dim, kept in dims.items():
                before = left.setdefault(name, {}).get(int(dim), list(range(tensors[name].shape[int(dim)])))
                left[name][int(dim)] = [before[index] for index in kept]
    with torch.no_grad():
        for name, sides in left.items():
            for dim, kept in sides.items():
                gone = sorted(set(range(tensors[name].shape[dim])) - set(kept))
                tensors[name].index_fill_(dim, torch.tensor(gone, dtype=torch.long), 0)
    return model


def check_export(pruned: nn.Module, workload: Workload, architecture: Architecture) -> str:
    """The exporter whose file gives torch's outputs for fresh inputs of another batch size; else raises WrongError.

    Random weights may amplify rounding: a file may be as far from double precision as three times torch itself is.
    """
    exported = export_onnx(pruned, workload)
    session = OnnxModule(exported.onnx_bytes)
    fresh = architecture.sample(3)
    with torch.no_grad():
        expected, exact = predict(pruned, fresh), predict(copy.deepcopy(pruned).double(), _double(fresh))
        given = output_tensor(session(**fresh) if isinstance(fresh, dict) else session(*_positional(fresh)))
    difference, own = (_difference([found.double()], [exact]) for found in (given, expected))
    _require(
        difference <= max(RUNTIME_SAME, 3 * own),
        f"ONNX Runtime is {difference:.2g} of the output from double precision, torch in single precision {own:.2g}",
    )
    return exported.exporter


def exports(model: nn.Module, workload: Workload) -> bool:
    """Whether there is an ONNX file of `model`."""
    try:
        export_onnx(model, workload)
    except ExportError:
        return False
    return True


def _positional(inputs: Inputs) -> tuple[Tensor, ...]:
    assert isinstance(inputs, Tensor | tuple)
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _trained(model: nn.Module, workload: Workload) -> set[str]:
    """The parameters that a backward pass in train mode reaches, with finite gradients."""
    model = copy.deepcopy(model).train()
    workload.loss(predict(model, workload.example_inputs), torch.zeros(2)).backward()
    reached = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    unusable = [name for name, gradient in reached.items() if not gradient.isfinite().all()]
    _require(not unusable, f"the gradients of {unusable} are not finite")
    return set(reached)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors_of(model).items()}


def _ties(model: nn.Module) -> set[frozenset[str]]:
    names: dict[int, set[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), set()).add(name)
    return {frozenset(same) for same in names.values() if len(same) > 1}


def _difference(given: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest, over all outputs, of the largest difference over the largest value."""
    shapes = [[tuple(value.shape) for value in values] for values in (given, wanted)]
    _require(shapes[0] == shapes[1], f"the outputs become {shapes[0]} instead of {shapes[1]}")
    _require(all(bool(value.isfinite().all()) for value in given), "the output is not finite")
    return max(
        float((one - other).abs().max()) / max(float(other.abs().max()), 1e-6)
        for one, other in zip(given, wanted, strict=True)
    )


def _require(holds: bool, message: str) -> None:  # noqa: FBT001 - a condition is what it is about
    if not holds:
        raise WrongError(message)
