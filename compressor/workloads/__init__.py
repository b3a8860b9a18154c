"""Ready workloads by name, and those of the user's own: `package.module:function`, `model.onnx[:data.npz]`."""

import ast
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from torch import nn

from compressor.checks import as_imported, did_you_mean
from compressor.errors import WorkloadError
from compressor.workload import Workload
from compressor.workloads.near_files import check_file, refuse_near_files

# How many functions of a module are listed.
_SHOWN = 8
_READY = {"digits": "compressor.workloads.digits:digits"}
_READY_FOLDS = {"digits": "compressor.workloads.digits:folded_digits"}


def load(
    name: str, *, batch: str = "free", metric: str | None = None, streams: Mapping[str, str] | None = None
) -> Workload:
    """The workload that `name` says: `digits`, what `package.module:function` returns, or one or two files.

    `model.onnx:data.npz` is an ONNX file on arrays, as `workload_of_files` reads them, and `metric` names another one
    than is usual for them; `model.onnx` alone is measured and not scored. `batch` and `streams` are for these alone,
    as for `read_onnx`.

    For `package.module:function` the current folder is importable, so that a file of one's own beside the recipe is
    enough; installed packages go first, whatever files are called there. Raises WorkloadError where there is no such
    module or function, where a module of that name is installed as well, or where it returns something else.
    """
    files = re.fullmatch(r"(?is)(.*?\.onnx)(?::(.*))?", name)
    if files:
        check_file(Path(files[1]), "the model")
    if files and files[2] is not None:
        from compressor.workloads.files import workload_of_files

        check_file(Path(files[2]), "the arrays `inputs` and `targets`")
        return workload_of_files(Path(files[1]), Path(files[2]), batch=_batch(batch), metric=metric, streams=streams)
    if metric is not None:
        raise WorkloadError(f"a metric is named for model.onnx:data.npz alone, and the workload is {name[:200]!r}")
    if files:
        from compressor.workloads.files import workload_of_file

        return workload_of_file(Path(name), batch=_batch(batch), streams=streams)
    if streams:
        raise WorkloadError(
            f"streams are outputs and inputs of an ONNX file, model.onnx or model.onnx:data.npz; got {name[:200]!r}"
        )
    if _batch(batch) == "fixed":
        raise WorkloadError(
            f"batch is about the batch that an ONNX file fixes, model.onnx or model.onnx:data.npz; got {name[:200]!r}"
        )
    module_name, separator, function_name = _READY.get(name, name).partition(":")
    _refuse_path("a workload", name)
    if not separator or not function_name or not all(map(str.isidentifier, module_name.split("."))):
        refuse_near_files(name)
        _refuse_bare_module(name)
        raise WorkloadError(
            f"a workload is one of {', '.join(_READY)}, package.module:function, model.onnx:data.npz, or model.onnx, "
            f"got {name[:200]!r}{did_you_mean(name, _READY)}; the function takes nothing and returns a "
            "compressor.Workload"
        )
    module = importlib.import_module(module_name) if name in _READY else _users_module(module_name, meant=name)
    made = getattr(module, function_name, None)
    if isinstance(made, Workload):
        return made
    if isinstance(made, nn.Module):
        raise WorkloadError(
            f"{name} is a {type(made).__name__}, a model without data; write a function that returns "
            "Workload.from_loaders(model, train=..., test=...), and give that"
        )
    function = _function_in(module, function_name)
    if name not in _READY and _takes_a_fold(function):
        raise WorkloadError(
            f"{name} must be given an argument, as functions of a fold are in a cross-validation (--folds 5); any "
            "other takes nothing and returns a compressor.Workload"
        )
    _refuse_arguments(name, function)
    workload = function()
    if not isinstance(workload, Workload):
        raise WorkloadError(
            f"{name} must return a compressor.Workload, it returned {type(workload).__name__}; let it end with "
            "return Workload.from_loaders(...), or from_datasets(...)"
        )
    return workload


def _refuse_path(what: str, name: str) -> None:
    """Raises WorkloadError where `name` has a file's path in place of a module; `what` says what is to be named."""
    module, separator, function = name.partition(":")
    if separator and (meant := as_imported(module, function)):
        raise WorkloadError(f"{what} is package.module:function, as in Python's imports, got {name[:200]!r}; {meant}")


def _refuse_arguments(name: str, function: Callable[..., Any]) -> None:
    """Raises WorkloadError for a function that cannot be called without arguments."""
    try:
        needed = [
            parameter.name
            for parameter in inspect.signature(function).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
        ]
    except (TypeError, ValueError):
        return
    if needed:
        raise WorkloadError(
            f"{name} must be callable without arguments, and needs {', '.join(needed)}; give them defaults, or name a "
            "function that calls it with them"
        )


def _refuse_bare_module(name: str) -> None:
    """Raises WorkloadError where `name` is a Python file or module of the current folder, with its functions."""
    try:
        path = Path(name) if name.endswith(".py") else Path(*name.split(".")).with_suffix(".py")
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    dotted = ".".join(path.with_suffix("").parts)
    raise WorkloadError(
        f"a workload is package.module:function, got {name[:200]!r} without a function; {path} has "
        + (", ".join(f"{dotted}:{function}" for function in functions[:_SHOWN]) or "none")
    )


def load_of_fold(name: str) -> Callable[..., Workload] | None:
    """The function of the fold that `name` says, as for `load`; None where it is a function without a fold, or files.

    Raises WorkloadError where there is no such module or function.
    """
    _refuse_path("a workload", name)
    module, separator, function = _READY_FOLDS.get(name, name).partition(":")
    if not separator or not all(map(str.isidentifier, [*module.split("."), function])):
        return None
    home = importlib.import_module(module) if name in _READY_FOLDS else _users_module(module, meant=name)
    found = _function_in(home, function)
    return found if name in _READY_FOLDS or _takes_a_fold(found) else None


def _takes_a_fold(function: Callable[..., Any]) -> bool:
    """Whether `function` must be given one argument: those that need none are workloads of their own."""
    try:
        signature = inspect.signature(function)
        signature.bind(None)
    except (TypeError, ValueError):
        return False
    try:
        signature.bind()
    except TypeError:
        return True
    return False


def _batch(wanted: str) -> Literal["free", "fixed"]:
    if wanted == "fixed":
        return "fixed"
    if wanted != "free":
        raise WorkloadError(f"batch is free or fixed, got {wanted[:200]!r}")
    return "free"


def function_named(name: str, wanted: str) -> Callable[..., Any]:
    """The function `package.module:function` of the user's own, found as `load` finds it; `wanted` says what it is for.

    Raises WorkloadError where there is none.
    """
    _refuse_path("a function", name)
    module_name, separator, function_name = name.partition(":")
    if not separator or not function_name or not all(map(str.isidentifier, module_name.split("."))):
        raise WorkloadError(f"{wanted}, or its name, package.module:function; got {name[:200]!r}")
    return _function_in(_users_module(module_name), function_name)


def _function_in(module: ModuleType, name: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        made = [key for key in own if getattr(getattr(module, key), "__module__", None) == module.__name__]
        known = f"; it has {', '.join(made[:_SHOWN])}" if made else ""
        if hasattr(module, name):
            raise WorkloadError(
                f"{module.__name__}.{name} is no function, but of type {type(function).__name__}{known}"
            )
        raise WorkloadError(f"{module.__name__} has no function {name!r}{did_you_mean(name, own)}{known}")
    found: Callable[..., Any] = function
    return found


def _users_module(name: str, *, meant: str = "") -> ModuleType:
    """The module `name` of the current folder or of an installed package; `meant` is the workload that names it."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        # Last, and for good: the module may import its neighbours later, in the processes of a DataLoader too.
        sys.path.append(folder)
    top = name.partition(".")[0]
    here = PathFinder.find_spec(top, [folder])
    found = _found(top)
    # A mere folder gives way to a package, as everywhere in Python.
    if here is not None and here.origin is not None and found is not None and found.origin != here.origin:
        raise WorkloadError(
            f"{top!r} is {here.origin} and also {found.origin or 'built into Python'}, and Python takes the second; "
            "give the file in the current folder another name"
        )
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise  # the user's module exists and lacks an import of its own
        refuse_near_files(meant)
        near = did_you_mean(name, [path.stem for path in Path(folder).glob("*.py")])
        raise WorkloadError(f"no module named {name!r} in {folder} or among the installed packages{near}") from error


def _found(top: str) -> ModuleSpec | None:
    """What `import top` takes, or has taken."""
    try:
        return importlib.util.find_spec(top)
    except ValueError:  # loaded without a finder, such as __main__
        return None
