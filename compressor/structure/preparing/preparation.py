"""What has to be exchanged in a model before its layers can be narrowed, as entries of its plan."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from compressor.batches import Inputs
from compressor.structure.attention import NarrowAttention, narrow_attention_, project_by_layers_
from compressor.structure.calling.draws import seed_torch
from compressor.structure.model_copies import sharing_copy
from compressor.structure.parametrizations import Computed, computed_weights, fold_weights_
from compressor.structure.plan import Entry
from compressor.structure.preparing.matching import matching_glob
from compressor.structure.trials import evaluating, outputs_at, same_outputs
from compressor.workload import predict


def prepare_(model: nn.Module, inputs: Inputs, *, ignore: Iterable[str] = ()) -> list[Entry]:
    """The plan entries of what was exchanged in `model` itself so that it can be narrowed, [] where nothing was.

    Computed weights become plain ones, but in modules that match a glob of `ignore`. Attention layers of torch insist
    that heads times their width is the model's width; they become NarrowAttention, which computes the same. Where the
    outputs for `inputs` would change, the model is left as it was.
    """
    return [*fold_(model, inputs, ignore=ignore), *_exchange_attention_(model, inputs)]


def fold_(
    model: nn.Module, inputs: Inputs, *, layers: Iterable[str] = ("*",), ignore: Iterable[str] = ()
) -> list[Entry]:
    """The plan entry of the computed weights that became plain ones in `model` itself, [] where none did.

    Weights stay computed in modules that match none of the globs `layers` or one of `ignore`, and where the model does
    not run without or computes something else: `why_unfolded` says it of them.
    """
    found = {
        name: tensors
        for name, tensors in computed_weights(model).items()
        if matching_glob(name, layers) is not None and matching_glob(name, ignore) is None
    }
    if found and _fault_of_folding(model, found, inputs) is not None:
        found = {name: own for name, own in found.items() if _fault_of_folding(model, {name: own}, inputs) is None}
        found = found if found and _fault_of_folding(model, found, inputs) is None else {}
    if not found:
        return []
    fold_weights_(model, found)
    return [{"kind": "fold", "tensors": found}]


def project_(model: nn.Module, inputs: Inputs, *, ignore: Iterable[str] = ()) -> list[Entry]:
    """The plan entry of the attention layers of `model` itself whose projection became a layer, [] where none did.

    These are NarrowAttention with one matrix for queries, keys and values, but for those that match a glob of
    `ignore`. Where the outputs for `inputs` would change, the model is left as it was.
    """
    names = [
        name
        for name, part in model.named_modules()
        if isinstance(part, NarrowAttention) and part.in_proj_weight is not None and matching_glob(name, ignore) is None
    ]
    return (
        [{"kind": "projections", "modules": names}]
        if names and _exchanged_(model, names, inputs, by=project_by_layers_)
        else []
    )


def why_unfolded(model: nn.Module, inputs: Inputs) -> dict[str, str]:
    """Why each module that still computes weights keeps its channels, by its name."""
    reasons = {}
    for name, tensors in computed_weights(model).items():
        what = " and ".join(f"{tensor} (by {by})" for tensor, by in tensors.items())
        fault = _fault_of_folding(model, {name: tensors}, inputs)
        why = "has to be made plain first (prepare_)" if fault is None else f"cannot be made plain: {fault}"
        reasons[name] = f"it computes its {what}, which {why}"
    return reasons


def _fault_of_folding(model: nn.Module, found: Computed, inputs: Inputs) -> str | None:
    """Why `model` cannot do with plain weights for the computed ones of `found`, or None; it stays as it is."""
    with evaluating(model):
        whole, folded = sharing_copy(model), sharing_copy(model)
        try:
            fold_weights_(folded, found)
            before, after = _drawing_alike(whole, inputs), _drawing_alike(folded, inputs)
        except Exception as error:  # noqa: BLE001 - a user's model may raise anything
            return _first_line(error)
        for size, output in before.items():
            if same_outputs(after[size], output) is not None:
                return "with the value that it has now, the model computes something else"
        reason = _training_fault(folded, inputs)
        return reason if reason is not None and _training_fault(whole, inputs) is None else None


def _drawing_alike(model: nn.Module, inputs: Inputs) -> dict[int, Tensor]:
    with torch.random.fork_rng(devices=[]):
        seed_torch(0)
        return outputs_at(model, inputs)


def _training_fault(model: nn.Module, inputs: Inputs) -> str | None:
    try:
        with torch.no_grad():
            predict(sharing_copy(model).train(), inputs)
    except Exception as error:  # noqa: BLE001 - as above
        return _first_line(error)
    return None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _exchange_attention_(model: nn.Module, inputs: Inputs) -> list[Entry]:
    names = [name for name, part in model.named_modules(remove_duplicate=False) if type(part) is nn.MultiheadAttention]
    if not names:
        return []
    return [{"kind": "attention", "modules": names}] if _exchanged_(model, names, inputs, by=narrow_attention_) else []


def _exchanged_(
    model: nn.Module, names: list[str], inputs: Inputs, *, by: Callable[[nn.Module, list[str]], nn.Module]
) -> bool:
    """Whether `by` exchanged the layers `names` of `model`: it is not done where the outputs would change."""
    with evaluating(model):
        before = outputs_at(model, inputs)
        try:
            after = outputs_at(by(sharing_copy(model), names), inputs)
        except (ValueError, RuntimeError, TypeError, AttributeError):
            return False
        if any(same_outputs(after[size], before[size]) is not None for size in before):
            return False
    by(model, names)
    return True
