"""The files that hold the code of a model: those of its classes, and those of the user's own that they import."""

import inspect
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

# Files of installed packages and of Python: what a model's file takes from there knows nothing of its tensors.
_INSTALLED = re.compile(r"[/\\](site|dist)-packages[/\\]")
_PACKAGE = str(Path(__file__).parents[2])
_LIBRARY = sysconfig.get_path("stdlib")


def is_torch(kind: type) -> bool:
    """Whether a class is torch's or Python's."""
    return kind.__module__.partition(".")[0] in {"torch", "builtins", "abc", "typing"}


def source_of(name: str) -> str | None:
    """The file of the module `name`, None where there is none to read."""
    try:
        path = inspect.getsourcefile(sys.modules[name])
    except (KeyError, TypeError):
        return None
    return path if path is not None and Path(path).is_file() else None


def helpers_of(name: str) -> Iterator[str]:
    """The files of the user's own that the module `name` takes functions, classes and modules from."""
    for value in vars(sys.modules[name]).values():
        path = source_of(value.__name__ if isinstance(value, ModuleType) else str(getattr(value, "__module__", "")))
        if path is not None and not is_foreign(path):
            yield path


def is_installed(name: str) -> bool:
    """Whether the module `name` belongs to Python, an installed package or this one, or has no file."""
    path = source_of(name)
    return path is None or is_foreign(path)


def is_foreign(path: str) -> bool:
    """Whether a file belongs to Python, an installed package or this one."""
    return bool(_INSTALLED.search(path)) or path.startswith((_LIBRARY, _PACKAGE))
