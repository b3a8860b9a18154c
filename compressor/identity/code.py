"""Functions, classes and modules taken apart into what decides their work: bytecode, constants, and what they refer to.

Code of installed packages is known by its name and version, all other code by its content.
"""

import dis
import importlib
import os
import sys
from collections.abc import Iterator
from enum import Enum
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

from compressor.identity.lookups import looked_up

Parts = list[Any]

# Written by the interpreter about a class, not by the class's author for its work.
_ABOUT_CLASSES = {
    "__dict__",
    "__weakref__",
    "__module__",
    "__qualname__",
    "__doc__",
    "__annotations__",
    "__annotate__",
    "__annotate_func__",
    "__annotations_cache__",
    "__firstlineno__",
    "__static_attributes__",
    "__dataclass_fields__",
    "__dataclass_params__",
    "__abstractmethods__",
    "_abc_impl",
}
_NOTHING = "a name without a value"


def installed_as(module: str) -> str | None:
    """Name and version of the installed package that `module` belongs to; None for code of the user's own."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names and top != "__main__":
        return f"{module} of Python"
    found = sys.modules.get(module)
    # Relative names of a module that nobody imported are the user's.
    file = getattr(found, "__file__", None) or getattr(sys.modules.get(top), "__file__", None) or ""
    if top != __name__.partition(".")[0] and not {"site-packages", "dist-packages"} & set(Path(file).parts):
        return None
    return f"{module} of {top} {getattr(sys.modules.get(top), '__version__', None) or _listed_version(top)}"


@cache
def _listed_version(top: str) -> str:
    """The version by which a package was installed that does not say one itself."""
    return " ".join(f"{name} {version(name)}" for name in sorted(set(packages_distributions().get(top, ()))))


def function_parts(function: FunctionType) -> Parts:
    """What `function` computes with: its code, defaults, closure, attributes, and the globals that it reads."""
    name = function.__qualname__
    installed = installed_as(function.__module__ or "__main__")
    closure = [_content(cell) for cell in function.__closure__ or ()]
    if installed is not None:
        # What a package makes for a caller (a decorator's wrapper, say) holds what the caller gave it.
        return [installed, name, *(closure if "<locals>" in name else ())]
    code = function.__code__
    own = {key: value for key, value in vars(function).items() if key != "__wrapped__"}
    read = sorted(set(_read_globals(code, function.__globals__)), key=lambda entry: entry[0])
    as_text = sorted(_looked_up(code, function.__globals__), key=lambda entry: entry[0])
    return [
        name,
        *code_parts(code),
        function.__defaults__,
        function.__kwdefaults__,
        own,
        closure,
        *(part for path, place in read for part in (path, _variables(place.value, code, read))),
        *(part for entry in as_text for part in entry),
    ]


def code_parts(code: CodeType) -> Parts:
    """What the interpreter runs, without files and lines."""
    constants = [code_parts(value) if isinstance(value, CodeType) else value for value in code.co_consts]
    return [
        code.co_code,
        code.co_exceptiontable,
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags),
        constants,
    ]


def class_parts(kind: type) -> Parts:
    """What instances of `kind` do: its methods and values, and those of its bases."""
    if not isinstance(kind.__module__, str):
        # A class in C that has a descriptor of this name for its instances.
        return [repr(kind)]
    installed = installed_as(kind.__module__)
    if installed is not None and "<locals>" not in kind.__qualname__:
        return [installed, kind.__qualname__]
    if issubclass(kind, Enum):
        functions = {key: value for key, value in vars(kind).items() if isinstance(value, FunctionType)}
        members = [(name, member.value) for name, member in kind.__members__.items()]
        return [kind.__qualname__, members, {} if installed else functions]
    own = {key: value for key, value in vars(kind).items() if key not in _ABOUT_CLASSES}
    return [kind.__qualname__, type(kind), list(kind.__bases__), own]


def module_parts(module: ModuleType) -> Parts:
    """A module as a whole: its file, and what it took from other modules."""
    installed = installed_as(module.__name__)
    if installed is not None:
        return [installed]
    file = Path(getattr(module, "__file__", None) or "")
    plain = ModuleType | FunctionType | type | str | int | float | complex | bool | bytes | None
    used = {key: value for key, value in vars(module).items() if key[:2] != "__" and isinstance(value, plain)}
    return [file.read_bytes() if file.is_file() else b"", used]


class _Place:
    """A value that is compared by where it was found, so that it may be anything."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Place) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _read_globals(code: CodeType, names: dict[str, Any]) -> Iterator[tuple[str, _Place]]:
    """The globals that `code` and the functions in it read, by name; of modules, the attributes that are read."""
    instructions = list(dis.get_instructions(code))
    for number, instruction in enumerate(instructions):
        after = instructions[number + 1 :]
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            if instruction.argval in names:
                yield from _read_of(*_followed(instruction.argval, names[instruction.argval], after), code)
        elif instruction.opname == "IMPORT_NAME":
            module = _imported(instruction.argval, instructions[number - 2].argval, names)
            if module is not None:
                taken = [other.argval for other in after if other.opname == "IMPORT_FROM"]
                found = [(name, _attribute(module, name)) for name in taken]
                for name, value in found or [(instruction.argval, module)]:
                    yield from _read_of(f"import {name}", value, code)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _read_globals(constant, names)


def _looked_up(code: CodeType, names: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What `code` and the functions in it look up as text."""
    yield from looked_up(code, names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _looked_up(constant, names)


def _followed(path: str, value: Any, after: list[dis.Instruction]) -> tuple[str, Any]:
    for instruction in after:
        if not isinstance(value, ModuleType) or instruction.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
            break
        path, value = f"{path}.{instruction.argval}", _attribute(value, instruction.argval)
    return path, value


def _read_of(path: str, value: Any, code: CodeType) -> Iterator[tuple[str, _Place]]:
    """`value`, and of a module of the user's own that goes by another name in `code` what may be read there."""
    yield path, _Place(value)
    if isinstance(value, ModuleType) and installed_as(value.__name__) is None:
        for name in code.co_names:
            if name in vars(value) and not isinstance(vars(value)[name], ModuleType):
                yield f"{path}.{name}", _Place(vars(value)[name])


def _variables(value: Any, code: CodeType, read: list[tuple[str, _Place]]) -> Any:
    """Of the environment, the variables that `code` names; any other value as it is.

    The modules of the process are not read as a whole: `lookups` says which of them are looked up.
    """
    if value is sys.modules:
        return "sys.modules"
    if value is not os.environ and value is not os.getenv:
        return value
    named = [*_texts(code), *(place.value for _, place in read if isinstance(place.value, str))]
    return [(name, os.environ.get(name)) for name in sorted(set(named))] if named else dict(sorted(os.environ.items()))


def _texts(code: CodeType) -> Iterator[str]:
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, CodeType):
            yield from _texts(constant)


def _attribute(module: ModuleType, name: str) -> Any:
    try:
        return getattr(module, name)
    except Exception:  # noqa: BLE001 - modules may import only when they are asked, and fail then in any way
        return _NOTHING


def _imported(name: str, level: Any, names: dict[str, Any]) -> ModuleType | None:
    package = names.get("__package__") or ""
    try:
        # The function imports it as well when it is called.
        return importlib.import_module(f"{'.' * level}{name}" if isinstance(level, int) else name, package or None)
    except Exception:  # noqa: BLE001 - a function may know what to do where a module is missing
        return None


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _NOTHING
