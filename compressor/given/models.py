"""Models as people have them: wrapped, compiled, in half precision, on a GPU."""

import copy
import warnings
from typing import Any

from torch import nn

from compressor.errors import WorkloadError
from compressor.given.notices import WorkloadWarning
from compressor.given.numbers import HALVES

# Wrappers by class name, so that the packages that define them need not be imported, and where the model is in them.
_INSIDE = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
}


def into_a_module(value: Any) -> str:
    """How a module is made of something that is none."""
    if callable(value) and not isinstance(value, type):
        return "call it in the forward of one, which holds its weights"
    return "load the weights into one first"


def as_usual_model(model: nn.Module) -> nn.Module:
    """`model` as stages work with it: unwrapped, in float32, in main memory; itself where it is all that already.

    DataParallel, DistributedDataParallel, AveragedModel and torch.compile are taken off. Weights in float16, bfloat16
    or float64 become float32, and a model on a GPU goes to the CPU, both in a copy: `model` is left as it is. What was
    done is told in one WorkloadWarning. Raises WorkloadError for what is no module.
    """
    if not isinstance(model, nn.Module):
        text = "its class" if isinstance(model, type) else type(model).__name__
        raise WorkloadError(
            f"model must be a torch.nn.Module, got {text}"
            + ("; make one of it, as in Net()" if isinstance(model, type) else f"; {into_a_module(model)}")
        )
    done = []
    inner = model
    while (attribute := _wrapped_in(inner)) is not None:
        done.append(f"taken out of {type(inner).__name__}")
        inner = getattr(inner, attribute)
    tensors = [*inner.parameters(), *inner.buffers()]
    kinds = sorted(
        {str(each.dtype).removeprefix("torch.") for each in tensors if each.is_floating_point()} - {"float32"}
    )
    places = sorted({each.device.type for each in tensors} - {"cpu", "meta"})
    compiled = getattr(inner, "_compiled_call_impl", None) is not None
    if kinds or places or compiled:
        inner = copy.deepcopy(inner)  # it leaves out what model.compile() made
        inner = inner.float() if kinds else inner
        inner = inner.cpu() if places else inner
    done += [f"converted from {kind} to float32" for kind in kinds]
    done += [f"copied from {place} to the CPU, where the file runs and stages work" for place in places]
    done += ["taken without what compile() made of it"] if compiled else []
    if done:
        warnings.warn(f"{type(inner).__name__} is {', and '.join(done)}", WorkloadWarning, stacklevel=3)
    return inner


def is_short(model: Any) -> bool:
    """Whether weights of `model` are in float16 or bfloat16, whose data most often are, too."""
    return isinstance(model, nn.Module) and any(own.dtype in HALVES for own in model.parameters())


def _wrapped_in(model: nn.Module) -> str | None:
    kinds = (kind.__name__ for kind in type(model).__mro__)
    return next((_INSIDE[kind] for kind in kinds if kind in _INSIDE), None)
