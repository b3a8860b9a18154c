"""Names that code looks up as text: what they stand for where the text is written out, else that they are not known.

`globals()["scale"]`, `globals().get("scale")`, `eval("scale * 2")`, `importlib.import_module("helpers")` and
`sys.modules["helpers"]` refer to things that no bytecode names.
"""

import builtins
import dis
import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

# The functions of Python that take names as text.
_EVALUATE = ("eval", "exec")
_IMPORT = ("import_module", "__import__")
# Attributes of frames and functions by which code gets at names; a frame may be any caller's.
_FRAMES = ("f_globals", "f_locals", "f_builtins", "__globals__", "__builtins__")
_WORD = re.compile(r"[^\W\d]\w*")
# What stands between a lookup and its text, and says nothing.
_SILENT = {"CACHE", "RESUME", "EXTENDED_ARG", "PUSH_NULL", "PRECALL", "NOP"}
_METHODS = {"LOAD_ATTR", "LOAD_METHOD"}


@dataclass(frozen=True)
class Unknown:
    """A part that cannot be looked into, with what it is in words."""

    what: str


def looked_up(code: CodeType, names: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What `code`, which sees the globals `names`, looks up as text: (name, value), or an Unknown for the value."""
    instructions = [each for each in dis.get_instructions(code) if each.opname not in _SILENT]
    for number, instruction in enumerate(instructions):
        asked, after = instruction.argval, instructions[number + 1 :]
        loads = instruction.opname in {"LOAD_GLOBAL", "LOAD_NAME"}
        if loads and asked == "globals" and names.get(asked, builtins.globals) is builtins.globals:
            yield from _texts_of("globals()", names, _text_after(after, ("get", "pop", "setdefault")))
        elif loads and asked in _EVALUATE and names.get(asked, getattr(builtins, asked)) is getattr(builtins, asked):
            text = _text_after(after)
            words = None if text is None else _WORD.findall(text)
            yield from _texts_of(f"{asked}()", names, words)
        elif instruction.argval in _IMPORT and instruction.opname.startswith("LOAD_"):
            yield from _modules_of(f"{asked}()", _text_after(after))
        elif asked in _FRAMES:
            yield str(asked), Unknown(f"names that it looks up as text ({asked})")
        elif asked == "modules" and number and instructions[number - 1].argval == "sys":
            yield from _modules_of("sys.modules", _text_after(after, ("get",)))


def _texts_of(how: str, names: dict[str, Any], text: str | list[str] | None) -> Iterator[tuple[str, Any]]:
    if text is None:
        yield how, Unknown(f"names that it looks up as text ({how})")
        return
    for name in [text] if isinstance(text, str) else text:
        if name in names:
            yield f"{how} {name}", names[name]


def _modules_of(how: str, text: str | None) -> Iterator[tuple[str, Any]]:
    if text is None:
        yield how, Unknown(f"a module that it looks up as text ({how})")
        return
    try:
        yield f"{how} {text}", sys.modules.get(text) or importlib.import_module(text)
    except Exception:  # noqa: BLE001 - a function may know what to do where a module is missing
        yield f"{how} {text}", None


def _text_after(after: list[dis.Instruction], methods: tuple[str, ...] = ()) -> str | None:
    """The whole text that is asked for right behind a lookup, as a key or as the argument of a call; None otherwise."""
    steps = [each for each in after[:6] if not (each.opname in _METHODS and each.argval in methods)]
    if steps and steps[0].opname == "CALL" and steps[0].arg == 0:  # globals()
        del steps[0]
    if len(steps) < 2 or steps[0].opname != "LOAD_CONST" or not isinstance(steps[0].argval, str):
        return None
    # A default may stand beside it: get("scale", 1.0).
    last = steps[2] if methods and steps[1].opname == "LOAD_CONST" and len(steps) > 2 else steps[1]
    asks = last.opname in {"CALL", "BINARY_SUBSCR"} or (last.opname == "BINARY_OP" and last.argrepr == "[]")
    return steps[0].argval if asks else None
