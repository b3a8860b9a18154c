"""Digests tell what values hold and do: equal in every process, another for whatever was changed."""

import ast
import enum
import functools
import importlib
import math
import operator
import re
import subprocess
import sys
import threading
import types
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from compressor import Metric
from compressor.identity import code
from compressor.identity.values import Identifier
from workbench import ROOT

SCALE = 2.0


def of(value) -> str:
    digest = Identifier().digest(value)
    assert digest.unknown == ()
    return digest.text


def scaled(factor):
    def loss(outputs, targets):
        return factor * F.mse_loss(outputs, targets)

    return loss


def with_default(outputs, factor=1):
    return outputs * factor


def with_keyword(outputs, *, factor=1):
    return outputs * factor


def reads_a_global(outputs):
    return outputs * SCALE


def calls_a_helper(outputs):
    return [helper(output) for output in outputs]


def helper(output):
    return output + 1


class Callable:
    """An object that is called, as transforms are."""

    rate = 0.5

    def __init__(self, strength) -> None:
        self.strength = strength

    def __call__(self, inputs):
        return self._changed(inputs) * self.strength

    def _changed(self, inputs):
        return inputs + self.rate

    def method(self, inputs):
        return inputs


class Hashed:
    """As transformers' configurations do."""

    def __init__(self) -> None:
        self.name = "a"
        self._original_object_hash = hash(self.name)


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value) -> None:
        self.value = value


@dataclass(frozen=True)
class Data:
    value: int = 1


class Kind(enum.Enum):
    ONE = 1
    TWO = 2


def net(**changes):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 3))
    for name, value in changes.items():
        setattr(module, name, value)
    return module


def changed_net(change):
    module = net()
    change(module)
    return module


# Values that all differ from each other, and each of which is made anew by its function.
DIFFERENT = {
    "one": lambda: 1,
    "one as a float": lambda: 1.0,
    "true": lambda: True,
    "text": lambda: "1",
    "bytes": lambda: b"1",
    "minus zero": lambda: -0.0,
    "zero": lambda: 0.0,
    "list": lambda: [1, 2],
    "tuple": lambda: (1, 2),
    "other order": lambda: [2, 1],
    "nested": lambda: [[1], [2]],
    "nested elsewhere": lambda: [[1, 2]],
    "set": lambda: {"a", "b", "c"},
    "other set": lambda: {"a", "b", "d"},
    "dict": lambda: {"a": 1},
    "dict of steps": lambda: {"a": 1, "b": 2},
    "steps in another order": lambda: {"b": 2, "a": 1},
    "tensor": lambda: torch.tensor([1.0, 2.0]),
    "tensor of halves": lambda: torch.tensor([1.0, 2.0]).bfloat16(),
    "tensor of integers": lambda: torch.tensor([1, 2]),
    "tensor of another shape": lambda: torch.tensor([[1.0, 2.0]]),
    "array": lambda: np.array([1.0, 2.0], dtype=np.float32),
    "array of objects": lambda: np.array([1.0, "x"], dtype=object),
    "sparse": lambda: torch.tensor([1.0, 0.0]).to_sparse(),
    "function": lambda: helper,
    "function of a factor": lambda: scaled(1),
    "function of another factor": lambda: scaled(2),
    "function of a tensor": lambda: scaled(torch.tensor(2.0)),
    "lambda": lambda: lambda x: x + 1,
    "other lambda": lambda: lambda x: x + 2,
    "lambda with another name in it": lambda: lambda x: x.sum(),
    "default": lambda: with_default,
    "keyword": lambda: with_keyword,
    "partial": lambda: functools.partial(with_default, factor=2),
    "other partial": lambda: functools.partial(with_default, factor=3),
    "cached": lambda: functools.cache(with_default),
    "library function": lambda: F.mse_loss,
    "other library function": lambda: F.l1_loss,
    "function in C": lambda: torch.relu,
    "bound method": lambda: Callable(1).method,
    "bound method of another": lambda: Callable(2).method,
    "object": lambda: Callable(1),
    "object with another setting": lambda: Callable(2),
    "remembers its hash": Hashed,
    "slots": lambda: Slotted(1),
    "other slots": lambda: Slotted(2),
    "data": Data,
    "other data": lambda: Data(2),
    "kind": lambda: Kind.ONE,
    "other kind": lambda: Kind.TWO,
    "pattern": lambda: re.compile("a"),
    "other pattern": lambda: re.compile("b"),
    "path": lambda: Path("a"),
    "getter": lambda: operator.itemgetter(1),
    "type of numbers": lambda: torch.float32,
    "array's type of numbers": lambda: np.dtype("f4"),
    "random numbers": lambda: np.random.default_rng(0),
    "other random numbers": lambda: np.random.default_rng(1),
    "torch's random numbers": lambda: torch.Generator().manual_seed(1),
    "lock": threading.Lock,
    "accuracy": Metric.accuracy,
    "top 2": lambda: Metric.top_k(2),
    "top 3": lambda: Metric.top_k(3),
    "loss": nn.CrossEntropyLoss,
    "loss with weights": lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0])),
    "loss with other weights": lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])),
    "smooth loss": lambda: nn.CrossEntropyLoss(label_smoothing=0.1),
    "network": net,
    "network with a number": lambda: net(scale=2),
    "network in training": lambda: net().eval(),
    "network partly frozen": lambda: changed_net(lambda module: module[0].weight.requires_grad_(False)),
    "network with one weight changed": lambda: changed_net(lambda module: module[3].bias.data.mul_(1.5)),
    "network with other statistics": lambda: changed_net(lambda module: module[1].running_mean.add_(1)),
    "network with equal layers": lambda: changed_net(lambda module: module[3].load_state_dict(module[0].state_dict())),
    "network with tied layers": lambda: changed_net(lambda module: setattr(module[3], "weight", module[0].weight)),
    "network with another rate": lambda: changed_net(lambda module: setattr(module[2], "p", 0.4)),
    "network with a hook": lambda: changed_net(lambda module: module[0].register_forward_hook(helper)),
    "network with a computed weight": lambda: changed_net(lambda module: weight_norm(module[0])),
    "network with another part": lambda: changed_net(lambda module: module.append(nn.ReLU())),
}


def test_values_that_differ_have_different_digests() -> None:
    """No two of the list are taken for each other, and each that is made again is known again."""
    digests = {name: of(make()) for name, make in DIFFERENT.items()}
    same = [pair for pair in combinations(digests, 2) if digests[pair[0]] == digests[pair[1]]]
    assert same == []
    assert {name: of(make()) for name, make in DIFFERENT.items()} == digests


def test_digests_are_the_same_in_every_process() -> None:
    """Neither addresses nor hash seeds nor the order of sets show in them."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import tests.identity.test_values as t\n"
        "print({name: t.of(make()) for name, make in t.DIFFERENT.items()})"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": "7"}
    ).stdout
    assert ast.literal_eval(told) == {name: of(make()) for name, make in DIFFERENT.items()}


@pytest.mark.parametrize(
    ("function", "change"),
    [
        (reads_a_global, lambda patch: patch.setitem(globals(), "SCALE", 3.0)),
        (calls_a_helper, lambda patch: patch.setitem(globals(), "helper", lambda output: output + 2)),
        (with_default, lambda patch: patch.setattr(with_default, "__defaults__", (2,))),
        (with_keyword, lambda patch: patch.setattr(with_keyword, "__kwdefaults__", {"factor": 2})),
        (helper, lambda patch: patch.setattr(helper, "strength", 2, raising=False)),
        (Callable(1), lambda patch: patch.setattr(Callable, "rate", 0.25)),
        (Callable(1), lambda patch: patch.setattr(Callable, "_changed", lambda self, inputs: inputs)),
    ],
)
def test_what_a_function_refers_to_counts(function, change, monkeypatch) -> None:
    """Globals, helpers, defaults, attributes, and the methods and values of the class, however far away."""
    before = of(function)
    change(monkeypatch)
    assert of(function) != before


def module(name: str, text: str) -> types.ModuleType:
    made = types.ModuleType(name)
    # Decorators of the standard library look the module up.
    sys.modules["mine"] = made
    exec(text, vars(made))
    del sys.modules["mine"]
    return made


def test_a_users_module_is_looked_into(monkeypatch) -> None:
    """What a function reads of a module of the user's own, by attribute or by an import inside, counts."""
    text = "def factor():\n    return table[0]\ntable = [{}]\nunused = [{}]\n"
    user = "import losses\ndef loss(o):\n    return losses.factor() * o\n"
    inside = "def loss(o):\n    from losses import factor\n    return factor() * o\n"
    whole = "def loss(o):\n    import losses as named\n    return named.table[0] * o\n"
    other_name = "import losses\ndef loss(o):\n    named = losses\n    return named.table[0] * o\n"
    found = {}
    for value, unused in ((1, 1), (2, 1), (1, 2)):
        monkeypatch.setitem(sys.modules, "losses", module("losses", text.format(value, unused)))
        found[value, unused] = [of(module("m", source).loss) for source in (user, inside, whole, other_name)]
    assert found[1, 1] == found[1, 2], "what is not read does not count"
    assert all(one != two for one, two in zip(found[1, 1], found[2, 1], strict=True))


@pytest.mark.parametrize("read", ["os.environ['MINE_RATE']", "os.environ.get('MINE_RATE')", "os.getenv(NAME)"])
def test_of_the_environment_what_is_read_counts(read: str, monkeypatch) -> None:
    """A variable that code names counts, and others, which differ from terminal to terminal, do not."""
    loss = module("mine", f"import os\nNAME = 'MINE_RATE'\ndef loss(o):\n    return float({read}) * o\n").loss
    monkeypatch.setenv("MINE_RATE", "1")
    before = of(loss)
    monkeypatch.setenv("WINDOW_OF_THE_TERMINAL", "2")
    assert of(loss) == before
    monkeypatch.setenv("MINE_RATE", "2")
    assert of(loss) != before


def test_a_package_that_says_no_version_is_known_by_its_list(tmp_path, monkeypatch) -> None:
    """Another version of it is other code, wherever the version is written."""
    found = []
    for number in ("1.0", "2.0"):
        packages = tmp_path / number / "site-packages"
        listed = packages / f"silent_losses-{number}.dist-info"
        listed.mkdir(parents=True)
        (listed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: silent-losses\nVersion: {number}\n")
        (listed / "top_level.txt").write_text("silent_losses\n")
        (packages / "silent_losses.py").write_text("def loss(o): return o\n")
        monkeypatch.syspath_prepend(packages)
        monkeypatch.delitem(sys.modules, "silent_losses", raising=False)
        code._listed_version.cache_clear()
        found.append(of(importlib.import_module("silent_losses").loss))
        sys.path.remove(str(packages))
    assert found[0] != found[1]


# Code with a constant deep inside it, in all the ways in which Python wraps code.
WRAPPED = {
    "static method": "class A:\n    @staticmethod\n    def f(): return {}\nvalue = A",
    "class method": "class A:\n    @classmethod\n    def f(cls): return {}\nvalue = A()",
    "property": "class A:\n    @property\n    def f(self): return {}\nvalue = A()",
    "cached property": "class A:\n    @functools.cached_property\n    def f(self): return {}\nvalue = A()",
    "method of a base": "class A:\n    def f(self): return {}\nclass B(A): pass\nvalue = B()",
    "method of a metaclass": "class M(type):\n    def f(self): return {}\nclass A(metaclass=M): pass\nvalue = A()",
    "abstract base": "class A(abc.ABC):\n    def f(self): return {}\nclass B(A): pass\nvalue = B",
    "generic": "class A(typing.Generic[typing.TypeVar('T')]):\n    def f(self): return {}\nvalue = A()",
    "protocol": "class A(typing.Protocol):\n    def f(self): return {}\nclass B(A): pass\nvalue = B()",
    "named tuple": "class A(typing.NamedTuple):\n    a: int = {}\nvalue = A",
    "default of a dataclass": "@dataclasses.dataclass\nclass A:\n    a: int = {}\nvalue = A",
    "factory of a dataclass": (
        "@dataclasses.dataclass\nclass A:\n    a: list = dataclasses.field(default_factory=lambda: [{}])\nvalue = A"
    ),
    "enum": "class A(enum.Enum):\n    ONE = {}\nvalue = A",
    "method of an enum": "class A(enum.Enum):\n    ONE = 1\n    def f(self): return {}\nvalue = A.ONE",
    "decorated": (
        "def twice(f):\n    @functools.wraps(f)\n    def g(x): return f(f(x))\n    return g\n"
        "@twice\ndef value(x): return x + {}"
    ),
    "cached": "@functools.cache\ndef value(x): return x + {}",
    "partial with the function's name": (
        "def f(x, y): return x + y\nvalue = functools.update_wrapper(functools.partial(f, y={}), f)"
    ),
    "object that wraps a function": (
        "class A:\n    def __init__(self, f, factor):\n        self.factor = factor\n"
        "        functools.update_wrapper(self, f)\nvalue = A(lambda x: x, {})"
    ),
    "number of hashes": "value = types.SimpleNamespace(_rounds_hash={})",
    "masked array": "value = np.ma.array([1.0, 2.0], mask=[False, {} == 1])",
    "without gradients": "@torch.no_grad()\ndef value(x): return x + {}",
    "compiled": (
        "def f(x): return x + {}\ndef value(x): return 0\n"
        "value._torchdynamo_orig_callable = f  # as torch.compile leaves it"
    ),
    "dispatched": "@functools.singledispatch\ndef value(x): pass\n@value.register\ndef _(x: int): return {}",
    "context": "@contextlib.contextmanager\ndef value(): yield {}",
    "coroutine": "async def value(): return {}",
    "generator": "def value(x):\n    for y in x: yield y + {}",
    "comprehension": "def value(x): return [y + {} for y in x]",
    "autograd": (
        "class A(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x): return x * {}\n"
        "def value(x): return A.apply(x)"
    ),
    "list of functions": "value = [len, [lambda x: x + {}]]",
    "attribute of a function": "def value(x): return value.factor\nvalue.factor = {}",
    "item of a dict": "settings = dict(a=[1, dict(b={})])\ndef value(x): return settings['a'][1]['b']",
    "object that is a global": "settings = types.SimpleNamespace(a={})\ndef value(x): return settings.a",
    "class that is a global": "class settings:\n    a = {}\ndef value(x): return settings.a",
    "global of a function inside": "a = {}\ndef value(x): return [(lambda y: y + a)(z) for z in x]",
    "counter": "value = collections.Counter(dict(a={}))",
    "queue": "value = collections.deque([1, {}])",
    "date": "value = datetime.date(2020, 1, {} + 1)",
    "fraction": "value = fractions.Fraction({} + 1, 7)",
    "distribution": "value = torch.distributions.Normal(0.0, {} + 1.0)",
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_constant_is_found_however_it_is_wrapped(kind: str) -> None:
    """One number of the code or the state is another: the digest is another, and everything could be looked into."""
    imports = (
        "import abc, collections, contextlib, dataclasses, datetime, enum, fractions, functools, types, typing\n"
        "import numpy as np\nimport torch\n"
    )
    one, same, other = (of(module("mine", imports + WRAPPED[kind].format(number)).value) for number in (1, 1, 2))
    assert one == same
    assert one != other


def test_lines_comments_and_names_of_files_do_not_count() -> None:
    """A function that was moved does the same."""
    one = module("one", "def loss(o):\n    return o + 1\n").loss
    two = module("two", "\n\n# a comment\ndef loss(o):\n\n    return o + 1  # and more\n").loss
    assert of(one) == of(two)


def test_circles_end() -> None:
    """A list in itself, functions that call each other, a class whose methods name it."""
    circle: list = [1]
    circle.append(circle)
    assert of(circle) != of([1, [1]])
    pair = "def even(n):\n    return n == 0 or odd(n - 1)\ndef odd(n):\n    return n != 0 and even(n - {})\n"
    assert of(module("m", pair.format(1)).even) == of(module("m", pair.format(1)).even)
    assert of(module("m", pair.format(1)).even) != of(module("m", pair.format(2)).even)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: (number for number in range(3)), "builtins.generator"),
        (lambda: Path(__file__).open(), "an open file (TextIOWrapper)"),  # noqa: SIM115 - closed by the test
        (lambda: memoryview(b"1"), "builtins.memoryview"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8), "torch.strided, torch.qint8"),
        (lambda: functools.reduce(lambda inner, _: [inner], range(100_000), []), "nested too deep"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor.*:UserWarning", "ignore:.*torch.ao.quantization.*")
def test_what_cannot_be_looked_into_is_said(make, kind) -> None:
    """Wherever it hides, its kind is listed, so that nobody takes the digest for the whole."""
    value = make()
    for held in (value, [1, {"a": value}], functools.partial(helper, value), Callable(value)):
        (unknown,) = Identifier().digest(held).unknown
        assert kind in unknown
    getattr(value, "close", lambda: None)()


def test_numbers_that_are_not_equal_to_themselves_are_known_again() -> None:
    """NaN is NaN."""
    assert of([math.nan, 1.0]) == of([math.nan, 1.0])
