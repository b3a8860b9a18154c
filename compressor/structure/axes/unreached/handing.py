"""Whether the code of a module could hand a tensor of its own to a member, as an argument that no call gave."""

import ast
import inspect
import textwrap
from dataclasses import dataclass, field

from torch import nn

from compressor.structure.axes.unreached.arguments import given_as

Method = ast.FunctionDef | ast.AsyncFunctionDef


def hands_over(caller: nn.Module, member: str, absent: list[tuple[int, str]], key: str) -> bool:
    """Whether code of `caller` could give `self.<key>`, or what it makes of it, to `self.<member>`.

    `absent` are the arguments that no call gave the member, with their places: what stands in for an argument that was
    given meets what that met. True as well where the text cannot be followed, does not name the member, or reads its
    attributes.
    """
    methods = _methods_of(caller)
    if methods is None:
        return True
    methods = [method for method in methods if method.name != "__init__"]
    flow, attribute = _Flow(methods, {key}), member.partition(".")[0]
    if not any(
        isinstance(node, ast.Attribute) and node.attr == attribute for each in methods for node in ast.walk(each)
    ):
        return True
    for method in methods:
        calls = _calls_of(method, attribute)
        if calls is None or _looks_into(method, attribute):
            return True
        values = (value for call in calls for place, name in absent for value in given_as(call, name, place))
        if any(flow.carries(method, value) for value in values):
            return True
    return False


def _methods_of(module: nn.Module) -> list[Method] | None:
    found = list[Method]()
    for kind in type(module).__mro__:
        if kind.__module__.partition(".")[0] in {"torch", "builtins"}:
            break
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
        except (OSError, TypeError, SyntaxError):
            return None
        found += [node for node in ast.walk(tree) if isinstance(node, Method)]
    return found


def _calls_of(method: Method, attribute: str) -> list[ast.Call] | None:
    """The calls of `self.<attribute>`, or of what a loop takes out of it; None where it goes where it is not seen."""
    inside = list(ast.walk(method))
    mentions = {id(node) for node in inside if isinstance(node, ast.Attribute) and node.attr == attribute}
    seen, aliases = set[int](), set[str]()
    for node in inside:
        value, targets = _bound(node)
        if value is not None and any(id(inner) in mentions for inner in ast.walk(value)):
            taken = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            if not isinstance(node, ast.Assign) or isinstance(value, ast.Attribute | ast.Subscript):
                aliases.update(taken)
                seen |= {id(inner) for inner in ast.walk(value)}
    calls = list[ast.Call]()
    for node in inside:
        if isinstance(node, ast.Call):
            function = node.func.value if isinstance(node.func, ast.Attribute | ast.Subscript) else node.func
            own = id(node.func) in mentions or id(function) in mentions
            if own or (isinstance(function, ast.Name) and function.id in aliases):
                calls.append(node)
                seen |= {id(inner) for inner in ast.walk(node.func)}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and id(node.value) in mentions:
            seen.add(id(node.value))  # an attribute of it
        elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            seen.add(id(node))
    return calls if mentions <= seen else None


def _looks_into(method: Method, attribute: str) -> bool:
    """Whether an attribute of `self.<attribute>` is read."""
    return any(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == attribute
        and node.attr not in {"forward", "__call__"}
        for node in ast.walk(method)
    )


def _bound(node: ast.AST) -> tuple[ast.expr | None, list[ast.expr]]:
    """What `node` binds, and to what."""
    match node:
        case ast.Assign(value=value, targets=targets):
            return value, targets
        case ast.AugAssign(value=value, target=target) | ast.NamedExpr(value=value, target=target):
            return value, [target]
        case ast.AnnAssign(value=value, target=target):
            return value, [target]
        case ast.For(iter=value, target=target) | ast.AsyncFor(iter=value, target=target):
            return value, [target]
        case ast.comprehension(iter=value, target=target):
            return value, [target]
        case ast.withitem(context_expr=value, optional_vars=ast.expr() as target):
            return value, [target]
        case _:
            return None, []


@dataclass
class _Flow:
    """Where the values of attributes go in the methods of a module: into variables, attributes, arguments, results."""

    methods: list[Method]
    keys: set[str]
    _names: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = -1
        while known != (known := len(self.keys) + sum(map(len, self._names.values()))):
            for method in self.methods:
                self._follow(method)

    def carries(self, method: Method, value: ast.expr) -> bool:
        """Whether an expression in `method` holds something that the attributes are in."""
        names = self._names.get(method.name, set())
        return any(
            (isinstance(node, ast.Attribute) and node.attr in self.keys)
            or (isinstance(node, ast.Constant) and node.value in self.keys)
            or (isinstance(node, ast.Name) and node.id in names)
            for node in ast.walk(value)
        )

    def _follow(self, method: Method) -> None:
        named = {each.name: each for each in self.methods}
        for node in ast.walk(method):
            value, targets = _bound(node)
            if value is not None and self.carries(method, value):
                for target in targets:
                    self._reached(method, _base(target))
            if isinstance(node, ast.Return) and node.value is not None and self.carries(method, node.value):
                self.keys.add(method.name)
            if isinstance(node, ast.Call):
                given = [*node.args, *(keyword.value for keyword in node.keywords)]
                if not any(self.carries(method, each) for each in given):
                    continue
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in named:
                    own = named[called].args
                    every = [*own.posonlyargs, *own.args, *own.kwonlyargs, own.vararg, own.kwarg]
                    self._names.setdefault(called, set()).update(
                        each.arg for each in every if each and each.arg != "self"
                    )
                if isinstance(node.func, ast.Attribute):
                    self._reached(method, _base(node.func.value))  # it may be changed in place

    def _reached(self, method: Method, bases: list[ast.expr]) -> None:
        for base in bases:
            if isinstance(base, ast.Name) and base.id != "self":
                self._names.setdefault(method.name, set()).add(base.id)
            elif isinstance(base, ast.Attribute):
                self.keys.add(base.attr)


def _base(target: ast.expr) -> list[ast.expr]:
    """The variables and attributes that an assignment to `target` changes."""
    if isinstance(target, ast.Tuple | ast.List):
        return [base for each in target.elts for base in _base(each)]
    while isinstance(target, ast.Subscript | ast.Starred):
        target = target.value
    return [target]
