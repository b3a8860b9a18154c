"""A random network pruned at random through the public stage, and compared with the original with zeros.

The plan alone says what was removed. The comparison is made in double precision: in eval mode on inputs that the stage
saw and on others that it did not (other lengths, other batch sizes, far larger values), and in a training step, whose
outputs, gradients and buffers must be those of the original with zeros.
"""

import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import StageError
from compressor.pruning.ranking.criteria import L1
from compressor.pruning.ranking.scope import Global, PerLayer
from compressor.stage import Context
from compressor.stages.channel_pruning import PruneChannels
from compressor.structure.plan import Entry, apply_plan_
from compressor.structure.trials import evaluating
from compressor.workload import Workload, output_tensor
from workbench.random_networks.growth import CLASSES, RandomNetwork
from workbench.same_data import same_data
from workbench.zoo.check import SAME, parameter_count, randomized_, zeroed_

# Sizes of maps: what the stage is shown, and what it is not.
SHOWN, OTHER = 6, 12
# Far beyond what normal inputs reach, so that rare branches are taken.
LARGE = 40.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What became of one network: "pruned", "refused" or "wrong", and why; `removed` of the parameters went."""

    seed: int
    outcome: str
    reason: str = ""
    removed: float = 0.0


def try_network(seed: int) -> Trial:
    """The trial of the network that grows from `seed`; nothing is raised."""
    network = randomized_(RandomNetwork(seed)).eval()
    draw = Random(seed + 1)  # noqa: S311 - networks are no secrets
    workload = _workload(network, both_sizes=draw.random() < 0.5)
    stage = PruneChannels(
        remove=draw.uniform(0.15, 0.6), criterion=L1(), scope=draw.choice((Global(), PerLayer())), align=1
    )
    context = Context(progress=False, seed=seed)
    try:
        pruned = stage.apply(copy.deepcopy(network), workload, context).eval()
    except StageError as error:
        return Trial(seed=seed, outcome="refused", reason=str(error))
    except Exception as error:  # noqa: BLE001 - whatever else is raised is the fault that is looked for
        return Trial(seed=seed, outcome="wrong", reason=f"the stage raised {type(error).__name__}: {error}")
    plan = json.loads(json.dumps(context.plan))
    prepared = apply_plan_(copy.deepcopy(network), [entry for entry in plan if entry["kind"] != "slice"]).eval()
    masked = zeroed_(prepared, plan).double()
    narrow = pruned.double()
    wrong = _in_eval(network, narrow, masked) or _in_training(network, narrow, masked, plan, workload)
    removed = 1 - parameter_count(pruned) / parameter_count(network)
    return Trial(seed=seed, outcome="wrong" if wrong else "pruned", reason=wrong or "", removed=removed)


def _workload(network: RandomNetwork, *, both_sizes: bool) -> Workload:
    sizes = (SHOWN, OTHER, SHOWN) if both_sizes else (SHOWN,) * 3
    data = [(network.sample(8, size), torch.arange(8) % CLASSES) for size in sizes]
    return same_data(network, data, network.sample(2, SHOWN), loss=nn.functional.cross_entropy)


def _inputs(network: RandomNetwork) -> dict[str, Tensor]:
    """Inputs by what they are, in double precision."""
    return {
        "inputs as shown": network.sample(2, SHOWN).double(),
        "one sample": network.sample(1, SHOWN).double(),
        "inputs of another size": network.sample(12, OTHER).double(),
        "large values": network.sample(3, SHOWN, LARGE).double(),
        "large values of another size": network.sample(12, OTHER, LARGE).double(),
    }


def _in_eval(network: RandomNetwork, narrow: nn.Module, masked: nn.Module) -> str | None:
    """What is wrong with what `narrow` computes in eval mode, or None."""
    torch.manual_seed(network.stem.weight.numel())
    for label, inputs in _inputs(network).items():
        with evaluating(masked), evaluating(narrow), torch.no_grad():
            wanted = list(tensors_in(masked(inputs)))
            try:
                given = list(tensors_in(narrow(inputs)))
            except Exception as error:  # noqa: BLE001 - as above
                return f"{label}, in eval mode: {type(error).__name__}: {error}"
        wrong = _difference(given, wanted)
        if wrong:
            return f"{label}, in eval mode: {wrong}"
    return None


def _in_training(
    network: RandomNetwork, narrow: nn.Module, masked: nn.Module, plan: list[Entry], workload: Workload
) -> str | None:
    """What is wrong with a training step of `narrow`, or None."""
    for size in (SHOWN, OTHER):
        inputs, targets = network.sample(8, size).double(), torch.arange(8) % CLASSES
        steps = []
        for original in (masked, narrow):
            model = copy.deepcopy(original).train()
            torch.manual_seed(1)
            try:
                raw = model(inputs)
                workload.loss(output_tensor(raw), targets).backward()
            except Exception as error:
                if original is masked:
                    raise
                return f"size {size}, in training: {type(error).__name__}: {error}"
            steps.append((list(tensors_in(raw)), _gradients(model), _buffers(model)))
        if network.draws:
            continue
        (wanted, slopes, kept), (given, narrow_slopes, narrow_kept) = steps
        wrong = _difference(given, wanted)
        if wrong:
            return f"size {size}, in training: {wrong}"
        for label, whole, part in (("gradient", slopes, narrow_slopes), ("buffer", kept, narrow_kept)):
            if whole.keys() != part.keys():
                return f"size {size}, in training: other tensors have a {label}: {sorted(whole.keys() ^ part.keys())}"
            for name, value in _narrowed(whole, plan).items():
                wrong = _difference([part[name]], [value], least=1e-3)
                if wrong:
                    return f"size {size}, in training: {label} {name}: {wrong}"
    return None


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.named_buffers() if value.is_floating_point()}


def _narrowed(values: dict[str, Tensor], plan: list[Entry]) -> dict[str, Tensor]:
    """`values`, by the names of the tensors they belong to, without what `plan` removes."""
    left = dict(values)
    for entry in plan:
        for name, dims in entry.get("tensors", {}).items() if entry["kind"] == "slice" else ():
            for dim, kept in dims.items() if name in left else ():
                left[name] = left[name].index_select(int(dim), torch.tensor(kept))
    return left


def tensors_in(raw: Any) -> Iterator[Tensor]:
    """Every tensor of floats in what a model returns, whatever it is."""
    if isinstance(raw, Tensor):
        yield from [raw.detach()] if raw.is_floating_point() else []
    elif isinstance(raw, Mapping):
        yield from tensors_in(list(raw.values()))
    elif isinstance(raw, list | tuple):
        for value in raw:
            yield from tensors_in(value)
    elif dataclasses.is_dataclass(raw):
        yield from tensors_in([getattr(raw, field.name) for field in dataclasses.fields(raw)])
    elif hasattr(raw, "__slots__"):
        yield from tensors_in([getattr(raw, name) for name in raw.__slots__])


def _difference(given: list[Tensor], wanted: list[Tensor], *, least: float = 1e-6) -> str | None:
    """How `given` differs from `wanted`, or None; differences count as parts of the largest value, `least` at least."""
    shapes = [[tuple(value.shape) for value in values] for values in (given, wanted)]
    if shapes[0] != shapes[1]:
        return f"shapes {shapes[0]} instead of {shapes[1]}"
    for one, other in zip(given, wanted, strict=True):
        if not torch.equal(one.isfinite(), other.isfinite()):
            return "other values are not finite"
        finite = other.isfinite()
        if not finite.any():
            continue
        difference = float((one - other)[finite].abs().max()) / max(float(other[finite].abs().max()), least)
        if difference > SAME:
            return f"off by {difference:.2g} of the largest value"
    return None
