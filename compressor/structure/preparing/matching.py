"""Globs of modules: what they match, and the refusal of those that match nothing, which are most often misspelled."""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from compressor.errors import StageError
from compressor.structure.attention import NarrowAttention


def matching_glob(name: str, globs: Iterable[str]) -> str | None:
    """The first of `globs` that matches the module `name` or one that it lies in by a whole name, None without one."""
    return next((glob for glob in globs if fnmatchcase(name, glob) or fnmatchcase(name, f"{glob}.*")), None)


def check_modules_match(setting: str, globs: Iterable[str], model: nn.Module, reference: nn.Module) -> None:
    """Every glob of `setting` names a module of `model`, or one of `reference` that earlier stages took out.

    A layer of a recurrent stack is called `rnn.layers.1`, as in DropBlocks, and the projection of queries, keys and
    values `attention.in_proj`. Raises StageError, before any work, with
    what may have been meant.
    """
    # The model itself has the name "", which patterns that stand for everything match.
    modules = dict.fromkeys(["", *_modules(model), *_modules(reference)])
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in modules):
            raise StageError(f"{setting}: {glob!r} matches no module of {type(model).__name__}; {_hint(glob, modules)}")


def check_names_match(setting: str, globs: Iterable[str], model: nn.Module) -> None:
    """Every glob of `setting` matches a module or a parameter of `model`. Raises StageError."""
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    modules = _modules(model)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in (*modules, *parameters)):
            raise StageError(
                f"{setting}: {glob!r} matches no module and no parameter of {type(model).__name__}; "
                f"{_hint(glob, modules)}"
            )


def _modules(model: nn.Module) -> list[str]:
    """The names of all modules, that of the model itself left out, and of what stages make layers of.

    Those are the layers of recurrent stacks, and the projection of queries, keys and values.
    """
    found = []
    for name, module in model.named_modules(remove_duplicate=False):
        found += [name] if name else []
        if isinstance(module, nn.RNNBase):
            found += [f"{name}.layers.{number}".lstrip(".") for number in range(module.num_layers)]
        if isinstance(module, nn.MultiheadAttention | NarrowAttention):
            found.append(f"{name}.in_proj".lstrip("."))
    return found


def _hint(glob: str, modules: Iterable[str]) -> str:
    names = [name for name in modules if name]
    if (owner := glob.rpartition(".")[0]) in names:
        return f"it names no module but what {owner!r} holds; write {owner!r}"
    near = difflib.get_close_matches(glob, names, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(names[:10]) or 'none'}"
