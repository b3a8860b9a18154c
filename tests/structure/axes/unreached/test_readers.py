"""A parameter or buffer that no example reaches locks what those who could read it meet, and nothing beyond."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.structure.axes.unreached.readers import readers_of
from compressor.structure.graph import trace_structure
from workbench.halving import free, halves, locks

X = torch.randn(2, 6)


class Embed(nn.Module):
    """Ten features, and a parameter `spare` of as many that is read where `masked` is given alone."""

    def __init__(self, spare: nn.Module | Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 10)
        if isinstance(spare, nn.Parameter | nn.Module):
            self.spare = spare
        else:
            self.register_buffer("spare", spare)

    def forward(self, x: Tensor, masked: Tensor | None = None) -> Tensor:
        x = F.relu(self.layer(x))
        return x if masked is None else x * masked * self.use(x)

    def use(self, x: Tensor) -> Tensor:
        spare = self.spare[0] if isinstance(self.spare, nn.ParameterList) else self.spare
        return spare if spare.is_floating_point() else x[:, spare].sum(1, keepdim=True)


class Whole(nn.Module):
    """Ten features of an embedding, ten of its own, eighteen behind them."""

    def __init__(self, spare: nn.Module | Tensor) -> None:
        super().__init__()
        self.embed, self.ten, self.wide = Embed(spare), nn.Linear(10, 10), nn.Linear(10, 18)
        self.head = nn.Linear(18, 3)

    def forward(self, x: Tensor, masked: Tensor | None = None) -> Tensor:
        x = F.relu(self.ten(self.embed(x, masked)))
        return self.head(F.relu(self.wide(x)))


@pytest.mark.parametrize(
    ("spare", "name"),
    [
        (lambda: nn.Parameter(torch.randn(10)), "embed.spare"),
        (lambda: nn.ParameterList([nn.Parameter(torch.randn(10))]), "embed.spare.0"),
        (lambda: torch.randn(10), "embed.spare"),
        (lambda: torch.tensor([0, 3, 5]), "embed.spare"),
    ],
    ids=["parameter", "list", "buffer", "positions"],
)
def test_its_module_keeps_what_it_meets(spare: Callable[[], nn.Module | Tensor], name: str) -> None:
    """The ten features beside the parameter stay, as many elsewhere go, and what was not shown is still right."""
    narrow, masked, graph = halves(Whole(spare()), X)
    assert set(free(graph)) == {"ten", "wide"}
    assert set(graph.unreached) == {name}
    assert "embed.spare" in locks(graph)["embed.layer"]
    torch.testing.assert_close(narrow(X, torch.ones(2, 1)), masked(X, torch.ones(2, 1)))


@pytest.mark.parametrize(("most", "kept"), [(5, {"embed.layer"}), (9, {"embed.layer"}), (10, set())])
def test_positions_lock_what_they_could_look_up(most: int, kept: set[str]) -> None:
    """Position 9 is one of ten; position 10 is none, and four numbers fit nothing by their shape."""
    graph = trace_structure(Whole(torch.tensor([1, 0, 2, most])).eval(), X)
    assert {"embed.layer", "ten", "wide"} - set(free(graph)) == kept


def test_a_parent_that_reads_it_is_a_reader() -> None:
    """Whoever holds the module may multiply what it has itself."""

    class Plain(Embed):
        def __init__(self) -> None:
            super().__init__(torch.zeros(1))
            self.shown = nn.Parameter(torch.randn(10))

    class Reads(Whole):
        def __init__(self) -> None:
            super().__init__(torch.zeros(1))
            self.embed = Plain()

        def forward(self, x: Tensor, masked: Tensor | None = None) -> Tensor:
            x = F.relu(self.ten(self.embed(x)))
            if masked is not None:
                x = x * self.embed.shown
            return self.head(F.relu(self.wide(x)))

    model = Reads()
    assert readers_of(model, "embed", "shown").modules == {"embed", ""}
    narrow, masked, graph = halves(model, X)
    assert set(free(graph)) == {"wide"}
    torch.testing.assert_close(narrow(X, torch.ones(2, 1)), masked(X, torch.ones(2, 1)))


def scaled(embed: Embed, x: Tensor) -> Tensor:
    return x * embed.aside


def test_a_function_that_reads_it_could_be_given_anything() -> None:
    """Where it stands in no class, nobody says what it meets."""

    class Aside(Embed):
        def __init__(self) -> None:
            super().__init__(torch.zeros(1))
            self.aside = nn.Parameter(torch.randn(10))

    class Helped(Whole):
        def __init__(self) -> None:
            super().__init__(torch.zeros(1))
            self.embed = Aside()

        def forward(self, x: Tensor, masked: Tensor | None = None) -> Tensor:
            x = F.relu(self.ten(self.embed(x)))
            return self.head(F.relu(self.wide(x if masked is None else scaled(self.embed, x))))

    model = Helped()
    assert readers_of(model, "embed", "aside") is None
    narrow, masked, graph = halves(model, X)
    assert set(free(graph)) == {"wide"}
    torch.testing.assert_close(narrow(X, torch.ones(2, 1)), masked(X, torch.ones(2, 1)))


def test_a_method_that_nobody_calls_could_be_given_anything() -> None:
    """It is there for whoever uses the model."""

    class Offers(Whole):
        def __init__(self) -> None:
            super().__init__(torch.zeros(1))
            self.embed.offered = nn.Parameter(torch.randn(10))

        def offer(self, x: Tensor) -> Tensor:
            return F.relu(self.ten(self.embed(x))) * self.embed.offered

    narrow, masked, graph = halves(Offers(), X)
    assert set(free(graph)) == {"wide"}
    torch.testing.assert_close(narrow.offer(X), masked.offer(X))


def test_what_it_was_never_given_comes_from_its_caller() -> None:
    """An argument that stays None in every example could be anything that the caller holds."""

    class Weighs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.weights = nn.Linear(6, 12), nn.Parameter(torch.randn(10))

        def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
            x = F.relu(self.layer(x))
            return x if other is None else x * (other * self.weights).sum(-1, keepdim=True)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ten, self.weighs, self.wide = nn.Linear(6, 10), Weighs(), nn.Linear(12, 14)
            self.join, self.head = nn.Linear(10, 14), nn.Linear(14, 3)

        def forward(self, x: Tensor, flag: bool | None = None) -> Tensor:  # noqa: FBT001 - as models have it
            ten = F.relu(self.ten(x))
            x = self.wide(self.weighs(x, ten if flag else None))
            return self.head(F.relu(x + self.join(ten)))

    narrow, masked, graph = halves(Outer(), X)
    assert set(free(graph)) == {"weighs.layer", "wide"}
    torch.testing.assert_close(narrow(X, flag=True), masked(X, flag=True))


def test_members_of_other_modules_count_where_they_are_kept() -> None:
    """A module that holds another one in a plain list can call it."""

    class Borrows(nn.Module):
        def __init__(self, lent: nn.Module) -> None:
            super().__init__()
            self.layer, self.lent, self.weights = nn.Linear(6, 12), [lent], nn.Parameter(torch.randn(10))

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] == 77:
                return self.layer(x) * (self.lent[0](x) * self.weights).sum(-1, keepdim=True)
            return self.layer(x)

    class Lends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ten = nn.Linear(6, 10)
            self.borrows, self.head = Borrows(self.ten), nn.Linear(22, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(torch.cat([self.ten(x), self.borrows(x)], 1)))

    narrow, masked, graph = halves(Lends(), X)
    assert set(free(graph)) == {"borrows.layer"}
    many = torch.randn(77, 6)
    torch.testing.assert_close(narrow(many), masked(many))
