"""What of several outputs is scored: an output's name, or a function that makes one tensor of what a model gives."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import WorkloadError
from compressor.kept_state import private_copy
from compressor.outputs.returned import returned_by_name

# Under this key a model that is judged by a part of its outputs gives that part.
JUDGED = "judged"
Which = str | Callable[[Any], Tensor]


@dataclass(frozen=True)
class Judge:
    """A forward hook that gives a model's outputs by name, the judged one first, under the key "judged".

    `which` is the name of an output (key, field, or place from "0" on; deeper ones joined by dots, as in "boxes.0"), or
    a function of what the model gives that makes one tensor of it, (batch, ...), by operators of torch: they become a
    part of the exported file. The output that it picks keeps no second name.
    """

    which: Which

    def __call__(self, module: nn.Module, _inputs: Any, raw: Any) -> dict[str, Tensor]:
        """The outputs. Raises WorkloadError where there is no such output, or the function makes no tensor."""
        named = returned_by_name(raw)
        if isinstance(self.which, str):
            if self.which not in named:
                raise WorkloadError(_no_such_output(self.which, list(named), type(module).__name__))
            chosen = named[self.which]
        else:
            chosen = self.which(raw)
            if not isinstance(chosen, Tensor):
                raise WorkloadError(
                    f"judge must make one tensor of what {type(module).__name__} gives, got {type(chosen).__name__}; "
                    f"the outputs are {', '.join(named)}"
                )
        return {JUDGED: chosen, **{name: tensor for name, tensor in named.items() if tensor is not chosen}}


def judged_by(model: nn.Module, which: Which | None) -> nn.Module:
    """A copy of `model` that gives the part of its outputs that `which` says as the judged one; itself for None.

    Names of layers and weights are the model's own. Raises WorkloadError for what is neither a name nor a function.
    """
    if which is None:
        return model
    if not isinstance(which, str) and (isinstance(which, type) or not callable(which)):
        raise WorkloadError(
            f"judge must be the name of an output, or a function of what the model gives, got {type(which).__name__} "
            f"{which!r}; the third of a tuple is judge='2'"
        )
    own = private_copy(model)
    own.register_forward_hook(Judge(which))
    return own


def unscored(outputs: Any, judged: Tensor) -> tuple[str, ...]:
    """The names of the tensors in `outputs` besides the `judged` one."""
    return tuple(name for name, tensor in returned_by_name(outputs).items() if tensor is not judged)


def try_judge(model: nn.Module, which: Which | None, call: Callable[[], Any]) -> None:
    """Nothing where `call()`, which calls `model`, works. Raises WorkloadError for a judge that does not fit."""
    if which is None:
        return
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model.eval()
            call()
    except WorkloadError:
        raise
    except Exception as error:
        label = repr(which) if isinstance(which, str) else getattr(which, "__name__", type(which).__name__)
        raise WorkloadError(
            f"judge {label} must make one tensor, (batch, ...), of what {type(model).__name__} gives, and fails on the "
            f"first batch: {type(error).__name__}: {error}"
        ) from error
    finally:
        for module, training in modes:
            module.training = training


def _no_such_output(name: str, known: list[str], kind: str) -> str:
    close = get_close_matches(name, known, 1)
    return (
        f"judge must name an output of {kind}, got {name!r}; it gives {', '.join(map(repr, known)) or 'no tensor'}"
        + (f". Did you mean {close[0]!r}?" if close else "")
    )
