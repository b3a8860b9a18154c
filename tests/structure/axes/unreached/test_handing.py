"""A tensor that no example reads locks what runs in a member only where it could be handed to that member."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.halving import free, halves, locks

X = torch.randn(4, 6)


class Inner(nn.Module):
    """Sixteen of its own between sixteen that come in and sixteen that go out."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        y = F.relu(self.up(x))
        if more is not None:
            y = y * more
        return self.down(y)


class Outer(nn.Module):
    """A token of sixteen features, and something that is done with it where no example comes."""

    def __init__(self) -> None:
        super().__init__()
        self.cached = None
        self.token = nn.Parameter(torch.rand(16))
        self.stem, self.inner = nn.Linear(6, 16), nn.ModuleList([Inner()]) if type(self) is InALoop else Inner()
        self.other = [self.inner]
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, mode: str = "") -> Tensor:
        return self.head(F.relu(self.run(F.relu(self.stem(x)), mode)))

    def run(self, x: Tensor, mode: str) -> Tensor:
        raise NotImplementedError


class Mixed(Outer):
    def run(self, x: Tensor, mode: str) -> Tensor:
        if mode:
            x = x * self.token
        return self.inner(x)


class Replaced(Outer):
    def replaced(self, x: Tensor, mode: str) -> Tensor:
        x = x.clone()
        if mode:
            x[:, :] = self.token
        return x

    def run(self, x: Tensor, mode: str) -> Tensor:
        return self.inner(self.replaced(x, mode))


class Handed(Outer):
    def run(self, x: Tensor, mode: str) -> Tensor:
        if mode:
            return self.inner(x, self.token)
        return self.inner(x)


class ByVariable(Outer):
    def run(self, x: Tensor, mode: str) -> Tensor:
        more = None
        if mode:
            scale = self.token * 2
            more = scale[None]
        return self.inner(x, more=more)


class ByMethod(Outer):
    def more(self, mode: str) -> Tensor | None:
        return self.token if mode else None

    def run(self, x: Tensor, mode: str) -> Tensor:
        return self.inner(x, more=self.more(mode))


class ByArgument(Outer):
    def through(self, x: Tensor, more: Tensor | None) -> Tensor:
        return self.inner(x, more)

    def run(self, x: Tensor, mode: str) -> Tensor:
        return self.through(x, self.token if mode else None)


class ByAttribute(Outer):
    def run(self, x: Tensor, mode: str) -> Tensor:
        if mode:
            self.cached = self.token + 1
        return self.inner(x, self.cached)


class InALoop(Outer):
    def run(self, x: Tensor, mode: str) -> Tensor:
        for layer in self.inner:
            x = layer(x, self.token) if mode else layer(x)
        return x


class ByAnotherName(Outer):
    def run(self, x: Tensor, mode: str) -> Tensor:
        return self.other[0](x, self.token) if mode else self.other[0](x)


class IntoIt(Outer):
    def run(self, x: Tensor, mode: str) -> Tensor:
        if mode:
            return self.inner.down(F.relu(self.inner.up(x)) * self.token)
        return self.inner(x)


@pytest.mark.parametrize("kind", [Mixed, Replaced])
def test_where_it_takes_the_place_of_what_was_given_the_inner_widths_go(kind: type[Outer]) -> None:
    """What the token meets stays, what is made of that in the member goes, and a masked call gives the same."""
    narrow, masked, graph = halves(kind(), X)
    assert set(free(graph)) == {"inner.up"}
    assert "token" in locks(graph)["stem"]
    torch.testing.assert_close(narrow(X, mode="masked"), masked(X, mode="masked"))


@pytest.mark.parametrize(
    "kind", [Handed, ByVariable, ByMethod, ByArgument, ByAttribute, InALoop, ByAnotherName, IntoIt]
)
def test_where_it_could_be_handed_over_the_inner_widths_stay(kind: type[Outer]) -> None:
    """Sixteen in the member could meet the sixteen of the token."""
    narrow, masked, graph = halves(kind(), X)
    assert not {"inner.up", "inner.0.up"} & set(free(graph))
    torch.testing.assert_close(narrow(X, mode="masked"), masked(X, mode="masked"))
