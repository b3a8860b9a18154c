"""What stays as it is while the rest of a model is trained: frozen parameters, and modules that run as in the file.

Frozen are parameters without `requires_grad` and those that a stage's `freeze` names. A module stays in eval mode, so
that its normalizations keep their statistics and its dropout stays off, where `freeze` names it, where it has
parameters and all of them are frozen, and where the user put it into eval mode by itself. The last can be told from the
workload's model, which keeps the modes in which it came: one in training mode as a whole has been asked to train, and
what is in eval mode inside of it was put there on purpose. One in eval mode as a whole is simply a trained model, which
says nothing of its parts, whatever mode a layer that was put in later is in.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

from torch import nn

from compressor.structure.preparing.matching import check_names_match


@contextmanager
def freezing(model: nn.Module, globs: Collection[str]) -> Iterator[None]:
    """Freezes the modules with all that is in them, and the parameters, whose names match one of `globs`.

    Afterwards every parameter is as it was. Raises StageError where a glob matches nothing.
    """
    check_names_match("freeze", globs, model)
    named = dict(model.named_parameters(remove_duplicate=False))
    flags = {name: parameter.requires_grad for name, parameter in named.items()}
    try:
        for name, parameter in named.items():
            if lies_in(name, globs):
                parameter.requires_grad_(False)
        yield
    finally:
        for name, parameter in named.items():
            parameter.requires_grad_(flags[name])


def still_modules(model: nn.Module, original: nn.Module, globs: Collection[str] = ()) -> dict[str, nn.Module]:
    """{name: module} of what stays in eval mode while `model` is trained; of nested ones the outermost alone.

    `original` is the workload's model, whose modes are the user's; modules are the same where their names are.
    """
    put = {name for name, module in original.named_modules() if original.training and not module.training}
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        parameters = list(module.parameters())
        frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
        if name and (frozen or name in put or lies_in(name, globs)):
            found[name] = module
    return found


def train_mode_(model: nn.Module, still: Iterable[nn.Module]) -> None:
    """`model` in training mode, and what is `still` in eval mode."""
    model.train()
    for outer in still:
        outer.eval()
        for module in outer.modules():
            # cuDNN has no gradients of recurrent layers in eval mode, which without dropout compute the same.
            if isinstance(module, nn.RNNBase) and not module.dropout:
                module.training = True


def frozen_names(model: nn.Module, still: Collection[str]) -> tuple[str, ...]:
    """All that stays as it is: the modules `still`, and the frozen parameters outside of them."""
    outside = (
        name
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and not any(name.startswith(f"{outer}.") for outer in still)
    )
    return (*still, *outside)


def lies_in(name: str, globs: Collection[str]) -> bool:
    """Whether a glob matches `name` or a module that it lies in."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), glob) for end in range(1, len(parts) + 1) for glob in globs)
