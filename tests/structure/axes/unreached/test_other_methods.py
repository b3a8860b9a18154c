"""Methods that no call comes through, and layers that would read pieces, keep the features that they take apart."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.structure.axes.unreached.other_methods import other_methods
from compressor.structure.graph import trace_structure
from workbench.halving import free, halves, locks

X = torch.randn(4, 6)


class Three(nn.Module):
    """Sixteen features, then twelve, then the output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(x)))))


class Viewed(Three):
    def encode(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x)).view(-1, 4, 4).sum(1)


class Picked(Three):
    def first(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x))[:, 0]


class Halved(Three):
    def halves(self, x: Tensor) -> Tensor:
        one, two = self.a(x).chunk(2, 1)
        return one * two


class ByProperty(Three):
    @property
    def turned(self) -> Callable[[Tensor], Tensor]:
        return lambda x: self.a(x).flip(1)


class InTwo(Three):
    """A method that uses another."""

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x))

    def largest(self, x: Tensor) -> Tensor:
        return self.a(x).argmax(1)

    def rolled(self, x: Tensor) -> Tensor:
        return self.features(x).roll(1, 1)


USES: list[tuple[type[Three], Callable[[Three], Tensor]]] = [
    (Viewed, lambda net: net.encode(X)),
    (Picked, lambda net: net.first(X)),
    (Halved, lambda net: net.halves(X)),
    (ByProperty, lambda net: net.turned(X)),
    (InTwo, lambda net: net.rolled(X)),
]


@pytest.mark.parametrize(("kind", "use"), USES, ids=[kind.__name__ for kind, _ in USES])
def test_what_a_method_takes_apart_stays(kind: type[Three], use: Callable[[Three], Tensor]) -> None:
    """Its features are locked with the method's line, others go, and it gives what the masked one gives."""
    narrow, masked, graph = halves(kind(), X)
    assert set(free(graph)) == {"b"}
    assert f"{kind.__name__}." in locks(graph)["a"]
    assert "test_other_methods.py:" in locks(graph)["a"]
    assert all(text.startswith("danger: no call of the model comes through it") for text in graph.unreached.values())
    torch.testing.assert_close(use(narrow), use(masked))


class Harmless(Three):
    """Methods that take no features apart, that `forward` uses, or that take nothing but the output."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.scaled(x))

    def scaled(self, x: Tensor) -> Tensor:
        return x.view(x.shape)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x))

    def best(self, x: Tensor) -> Tensor:
        return self(x)[:, :2].argmax(1)

    def weights(self) -> list[Tensor]:
        return [weight.view(-1) for weight in self.parameters()]


def test_other_methods_lock_nothing() -> None:
    """Narrower features are what a pruned model has."""
    graph = trace_structure(Harmless().eval(), X)
    assert set(free(graph)) == {"a", "b"}
    assert graph.unreached == {}


def test_a_subclass_has_its_own_method() -> None:
    """What is overridden is no more there."""

    class Plainer(Viewed):
        def encode(self, x: Tensor) -> Tensor:
            return F.relu(self.a(x))

    assert list(other_methods(Plainer())) == []
    assert [(method.owner, method.name, method.layers) for method in other_methods(nn.Sequential(Viewed()))] == [
        ("0", "encode", ("0.a",))
    ]


class Pieces(nn.Module):
    """A layer for a keyword that no example gives, which reads a part of sixteen features."""

    def __init__(self, size: int, take: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 16), nn.Linear(16, 4), nn.Linear(4, 3)
        self.piece, self.take = nn.Linear(size, 1), take

    def forward(self, x: Tensor, more: bool | None = None) -> Tensor:  # noqa: FBT001 - as models have it
        y = F.relu(self.a(x))
        result = self.head(F.relu(self.b(y)))
        if more:
            result = result * self.piece(self.take(y)[:, : self.piece.in_features])
        return result


@pytest.mark.parametrize("size", [5, 8, 15])
def test_a_layer_that_would_read_a_piece_keeps_what_is_wider(size: int) -> None:
    """No width is its own: sixteen features stay, four are too few, and the keyword still gives the same."""
    narrow, masked, graph = halves(Pieces(size, lambda y: y), X)
    assert set(free(graph)) == {"b"}
    torch.testing.assert_close(narrow(X, True), masked(X, True))


class Gated(Three):
    """A layer for inputs of its own, and nothing is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(5, 7)

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        y = F.relu(self.a(x))
        if more is not None:
            y = y * self.gate(more).mean()
        return self.head(F.relu(self.b(y)))


def test_a_layer_for_inputs_of_its_own_keeps_nothing() -> None:
    """Nothing beside it is taken in pieces."""
    graph = trace_structure(Gated().eval(), X)
    assert set(free(graph)) == {"a", "b"}
    assert "nothing that could go fits it" in graph.unreached["gate"]
