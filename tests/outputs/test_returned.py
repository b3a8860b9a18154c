"""Whatever a model hands back its tensors in, they keep their widths."""

import copy
from collections import OrderedDict, UserDict, UserList, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from compressor.errors import StageError
from compressor.outputs.returned import returned_tensors
from compressor.structure.graph import trace_structure
from compressor.structure.plan import apply_plan_
from workbench.halving import free, halves, locks


@dataclass
class Output:
    logits: Tensor
    embedding: Any = None
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Frozen:
    logits: Tensor
    embedding: Tensor


class Plain:
    def __init__(self, logits: Tensor, embedding: Tensor) -> None:
        self.logits, self._embedding = logits, embedding

    @property
    def embedding(self) -> Tensor:
        return self._embedding


class Slots:
    __slots__ = ("embedding", "logits")

    def __init__(self, logits: Tensor, embedding: Tensor) -> None:
        self.logits, self.embedding = logits, embedding


class Pair(tuple):  # noqa: SLOT001 - it is to have attributes
    """A tuple with an attribute of its own."""

    logits: Tensor


Named = namedtuple("Named", ["logits", "embedding"])  # noqa: PYI024 - the kind that older code returns


def pair(logits: Tensor, embedding: Tensor) -> Pair:
    made = Pair((logits,))
    made.embedding = embedding
    return made


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dataclass": Output,
    "dataclass with slots": Frozen,
    "object": Plain,
    "slots": Slots,
    "named tuple": Named,
    "tuple with an attribute": pair,
    "nested": lambda y, f: {"logits": y, "more": [(1, {"deep": (None, f)})]},
    "dataclass in a dataclass": lambda y, f: Output(y, more={"inner": Output(y, f)}),
    "ordered dict": lambda y, f: OrderedDict(logits=y, embedding=f),
    "user dict": lambda y, f: UserDict(logits=y, embedding=f),
    "user list": lambda y, f: UserList([y, f]),
    "deque": lambda y, f: deque([y, f]),
    "set in a tuple": lambda y, f: (y, {f}),
    "distribution": lambda y, f: Output(y, Independent(Normal(f, 1.0), 1)),
    "categorical": lambda y, f: (y, Categorical(logits=f)),
    "packed": lambda y, f: (
        y,
        pack_padded_sequence(f[:, None], torch.ones(len(f), dtype=torch.long), batch_first=True),
    ),
    "array": lambda y, f: (y, f.detach().numpy()),
}


class Network(nn.Module):
    """Its last features are handed back beside what is judged."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.form = form
        self.a, self.b, self.head = nn.Linear(12, 16), nn.Linear(16, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Any:
        f = F.relu(self.b(F.relu(self.a(x))))
        return self.form(self.head(f), f)


@pytest.mark.parametrize("form", FORMS)
def test_tensors_in_any_object_are_outputs(form: str) -> None:
    """The features keep their ten channels, in whatever they come; the layer before them is halved."""
    narrow, masked, graph = halves(Network(FORMS[form]), torch.randn(2, 12))
    assert set(free(graph)) == {"a"}
    x = torch.randn(3, 12)
    with torch.no_grad():
        torch.testing.assert_close(*map(returned_tensors, (narrow(x), masked(x))))


def test_outputs_of_transformers_are_outputs_without_their_cache() -> None:
    """Hidden states are handed back and stay; keys and values for the next call are the model's own."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=1, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    config.use_cache, config.output_attentions, config._attn_implementation = True, False, "eager"
    model, tokens = transformers.GPT2LMHeadModel(config).eval(), torch.randint(0, 40, (2, 5))
    assert len(returned_tensors(model(tokens, output_hidden_states=True))) == 3
    assert len(returned_tensors(model(tokens, return_dict=False))) == 1  # the cache has no name here
    assert any(group.kind == "heads" for group in free(trace_structure(model, tokens)).values())


def test_each_tensor_counts_once_and_modules_are_not_walked() -> None:
    """References back to the model, cycles and repeated tensors do not matter."""
    layer, x = nn.Linear(2, 2), torch.ones(2)
    told = Output(x, more={"model": layer, "again": x, "name": "a", "type": int})
    told.more["self"] = told
    assert returned_tensors(told) == [x]


def test_what_can_be_read_once_is_refused() -> None:
    """A generator would be empty for the caller: the error says what to return."""
    with pytest.raises(StageError, match=r"generator.*return a list or a tuple"):
        trace_structure(Network(lambda y, f: (t for t in (y, f))).eval(), torch.randn(2, 12))


def test_a_second_output_is_compared_in_trials() -> None:
    """What the judged output does not show is found in the other: a size in use there locks the group."""

    class Sized(Network):
        def forward(self, x: Tensor) -> Any:
            f = F.relu(self.b(F.relu(self.a(x))))
            return {"logits": self.head(f), "scale": f.sum(1) / self.b.weight.shape[0]}

    graph = trace_structure(Sized(Output).eval(), torch.randn(2, 12))
    assert set(free(graph)) == {"a"}
    assert "computes something else" in locks(graph)["b"]


def test_an_attribute_that_is_kept_is_no_output() -> None:
    """A loss that a model keeps for itself follows its features."""

    class Keeping(Network):
        def forward(self, x: Tensor) -> Any:
            f = F.relu(self.b(F.relu(self.a(x))))
            self.extra = (f**2).sum(1).mean()
            return self.head(f)

    model, x = Keeping(Output).eval(), torch.randn(2, 12)
    graph = trace_structure(model, x)
    assert set(free(graph)) == {"a", "b"}
    narrow = apply_plan_(copy.deepcopy(model), graph.entries({group: [1] for group in free(graph).values()}))
    narrow.train()(x).sum().backward()


def _default(tensor: Tensor) -> Callable[[], Tensor]:
    def late(held: Tensor = tensor) -> Tensor:
        return held

    return late


class _Late:
    __slots__ = ("call",)

    def __init__(self, tensor: Tensor) -> None:
        self.call = tensor.sum


def _with_property(tensor: Tensor) -> Any:
    class Local:
        shown = property(lambda _: tensor)

    return Local()


def _with_attribute(tensor: Tensor) -> Any:
    return type("Local", (), {"__qualname__": "made.<locals>.Local", "kept": tensor})()


@pytest.mark.parametrize(
    "late",
    [
        lambda y: lambda: y[:, 3],
        lambda y: {"more": [lambda: lambda: y]},
        _default,
        lambda y: y.clone().sum,
        _Late,
        _with_property,
        _with_attribute,
        lambda y: _Late(y).call.__self__.unsqueeze,
    ],
    ids=["lambda", "lambda in a lambda", "default", "method", "slot", "property", "class", "method of a tensor"],
)
def test_what_functions_enclose_is_handed_back(late: Callable[[Tensor], Any]) -> None:
    """Whoever calls them later gets the features: they stay, and those before them go."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Any:
            y = F.relu(self.b(F.relu(self.a(x))))
            return self.head(y), late(y)

    graph = trace_structure(Model().eval(), torch.randn(2, 6))
    assert set(free(graph)) == {"a"}
    assert locks(graph)["b"] == "it makes the model's output"


def test_functions_may_enclose_what_is_read_once() -> None:
    """A generator that a function uses is nothing that is handed back."""
    numbers = iter([1.0])
    kept = torch.zeros(2)
    assert [id(tensor) for tensor in returned_tensors(lambda: (next(numbers), kept))] == [id(kept)]
