"""The texts of functions, found by their code."""

import ast
from functools import lru_cache
from pathlib import Path
from types import CodeType

from compressor.structure.calling.coverage import Place, places_of, within

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def place_of(node: ast.expr | Function) -> Place:
    """Where an expression or a function stands."""
    return node.lineno, node.col_offset, node.end_lineno or node.lineno, node.end_col_offset or 0


@lru_cache(maxsize=64)
def functions_in(path: str) -> list[tuple[int, str, Function]]:
    """Each function of a file with its first line, and the name of the class around it, "" outside of one."""
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return []
    found = list[tuple[int, str, Function]]()
    rest: list[tuple[ast.AST, str]] = [(tree, "")]
    while rest:
        node, kind = rest.pop()
        if isinstance(node, Function):
            first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
            found.append((first, kind, node))
        inner = node.name if isinstance(node, ast.ClassDef) else kind
        rest += [(child, inner) for child in ast.iter_child_nodes(node)]
    return found


def function_of(code: CodeType) -> Function | None:
    """The text of a function, None where it is not to be read: of several in one line the one that holds the most."""
    fitting = [
        node
        for first, _, node in functions_in(code.co_filename)
        if first == code.co_firstlineno and getattr(node, "name", "<lambda>") == code.co_name
    ]
    places = list(places_of(code)) if len(fitting) > 1 else []
    return max(
        fitting,
        key=lambda node: (sum(within(place, place_of(node)) for _, place in places), -(node.end_col_offset or 0)),
        default=None,
    )
