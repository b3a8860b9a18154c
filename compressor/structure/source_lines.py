"""Lines of a model's own source code: where its layers are called, and where and in which layer an error arose."""

import ast
import inspect
import re
import sys
import sysconfig
import textwrap
import traceback
from pathlib import Path
from types import CodeType, FrameType

import torch
from torch import nn

from compressor.batches import Inputs
from compressor.structure.calling.hooks import hooks
from compressor.workload import predict

_TORCH = str(Path(torch.__file__).parent)
_PACKAGE = Path(__file__).parent.parent
# A ready workload's model is a model as any other.
_MODELS = str(_PACKAGE / "workloads")
# Every call of a module passes it, and only its frame knows which module that is.
_CALL = nn.Module._call_impl.__code__  # noqa: SLF001 - there is no public name
_INSTALLED = re.compile(r"[/\\](?:site|dist)-packages[/\\]([^/\\]+)")
_LIBRARY = str(Path(sysconfig.get_path("stdlib")))
# What the package stands on: a line there says nothing about the user's code.
_TOOLS = {"numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "safetensors", "scipy", "sklearn", "torch_pruning"}
_TOOLS |= {"python", "torch", "tqdm"}


def short_path(path: Path) -> str:
    """`path` from here, from a folder of modules, or from its outermost package: the shortest of them.

    So no report holds the paths of the machine that made it.
    """
    package = path.parent
    while (package / "__init__.py").is_file():
        package = package.parent
    roots = [Path.cwd(), package, *(Path(entry) for entry in sys.path if entry)]
    inside = [path.relative_to(root) for root in roots if path.is_relative_to(root)]
    return str(min(inside, key=lambda found: len(found.parts), default=path))


def call_lines(model: nn.Module, inputs: Inputs) -> dict[str, str]:
    """The `file:line` that calls each module of `model` first, by the module's name.

    Containers of torch call their members themselves: the line is then the one that calls the container. Modules that
    do not run for `inputs`, or that no line of the model's own code leads to, are left out.
    """
    lines: dict[str, str] = {}
    with hooks() as handles, torch.no_grad():
        for name, module in model.named_modules():

            def note(_module: nn.Module, _args: object, name: str = name) -> None:
                line = _calling_line(sys._getframe(1))  # noqa: SLF001 - inspect.currentframe is the same, and may be None
                if line and name:
                    lines.setdefault(name, line)

            handles.append(module.register_forward_pre_hook(note))
        predict(model, inputs)
    return lines


def mention_line(model: nn.Module, name: str) -> str | None:
    """The `file:line` of the model's own code that uses the layer or tensor `name`, or else the one that makes it.

    The owners of `name` are asked from the inside out for their own class's code. None where there is none to read.
    """
    owner_name, _, key = name.rpartition(".")
    while key:
        owner = model.get_submodule(owner_name)
        line = _line_with(type(owner), key)
        if line is not None:
            return line
        owner_name, _, key = owner_name.rpartition(".")
    return None


def _line_with(kind: type, attribute: str) -> str | None:
    """The first line of the methods of `kind` that reads `self.<attribute>`, or else sets it."""
    if not attribute.isidentifier():
        return None
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in {"torch", "builtins"}:
            return None
        try:
            lines, first = inspect.getsourcelines(base)
            tree = ast.parse(textwrap.dedent("".join(lines)))
            path = inspect.getsourcefile(base)
        except (OSError, TypeError, SyntaxError):
            continue
        found = [
            (isinstance(node.ctx, ast.Store), node.lineno)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr == attribute and ast.unparse(node.value) == "self"
        ]
        if found and path:
            return f"{short_path(Path(path))}:{first + min(found)[1] - 1}"
    return None


def error_line(error: BaseException) -> str | None:
    """The innermost `file:line` of the user's code that `error` came through, None where there is none.

    Code of installed packages (a model's, a stage's) is the user's where none of the user's own is below it; that of
    the libraries that the package itself stands on is not.
    """
    own = [(frame.f_code, number) for frame, number in traceback.walk_tb(error.__traceback__) if _is_own(frame.f_code)]
    theirs = [entry for entry in own if _package_of(entry[0]) not in _TOOLS]
    written = [entry for entry in theirs if _package_of(entry[0]) is None]
    return _shown(*(written or theirs)[-1]) if theirs else None


def error_module(error: BaseException) -> str | None:
    """The innermost module that `error` came through, as `'path.in.the.model' (Type)`, None where there is none."""
    called = [
        module
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code is _CALL and isinstance(module := frame.f_locals.get("self"), nn.Module)
    ]
    # What the package wraps around a model is no place in it.
    while called and type(called[0]).__module__.startswith(f"{_PACKAGE.name}."):
        del called[0]
    if not called:
        return None
    kind = type(called[-1]).__name__
    path = next((path for path, module in called[0].named_modules() if module is called[-1]), "")
    return f"{path!r} ({kind})" if path else kind


def told(error: BaseException) -> str:
    """The kind and the first line of `error`, with the `file:line` of the model's own code that it came through."""
    line = error_line(error)
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}{f' ({line})' if line else ''}"


def _calling_line(frame: FrameType | None) -> str | None:
    while frame is not None:
        if _is_own(frame.f_code):
            return _shown(frame.f_code, frame.f_lineno)
        # Beyond our own call of the model stands whoever asked for the inspection.
        if frame.f_code.co_name == predict.__name__ and frame.f_code.co_filename == predict.__code__.co_filename:
            return None
        frame = frame.f_back
    return None


def _package_of(code: CodeType) -> str | None:
    """The installed package that `code` is of, "python" for its own library; None for code that is not installed."""
    installed = _INSTALLED.search(code.co_filename)
    if installed:
        return installed[1].removesuffix(".py")
    return "python" if code.co_filename.startswith(_LIBRARY) else None


def _is_own(code: CodeType) -> bool:
    name = code.co_filename
    inside = name.startswith(str(_PACKAGE)) and not name.startswith(_MODELS)
    return not inside and not name.startswith((_TORCH, "<"))


def shortened(text: str) -> str:
    """`text` with every absolute path of Python code as short as it is clear."""
    return re.sub(r"/[^\s:()'\"]+\.py\b", lambda match: short_path(Path(match.group())), text)


def _shown(code: CodeType, line: int) -> str:
    return f"{short_path(Path(code.co_filename))}:{line}"
