"""The usual space: what the doctor would take, in several amounts, and integers alone."""

from types import SimpleNamespace

import pytest
from torch import nn

from compressor.errors import WrongUseError
from compressor.recipe.recipe import Recipe
from compressor.searching import space
from compressor.stages import Distill, DropBlocks, PruneChannels, Quantize
from compressor.target import Target

WORKLOAD = SimpleNamespace(model=nn.Linear(2, 2))


def recommended(
    monkeypatch: pytest.MonkeyPatch, *stages: object, blocks: tuple[int, ...] = (4,), widths: tuple[int, ...] = (64,)
) -> None:
    """The doctor recommends `stages` for groups of so many blocks and layers of such widths."""
    inspection = SimpleNamespace(
        free_blocks=[SimpleNamespace(group=str(group)) for group, count in enumerate(blocks) for _ in range(count)],
        free_groups=[SimpleNamespace(width=width) for width in widths],
    )
    found = SimpleNamespace(recipe=Recipe(name="doctor", stages=stages)) if stages else None
    monkeypatch.setattr(space, "inspect", lambda workload, target: inspection)
    monkeypatch.setattr(space, "recommend", lambda found_, target: found)


def kinds(recipes: list[Recipe]) -> list[tuple[str, ...]]:
    return [tuple(type(stage).__name__ for stage in recipe.stages) for recipe in recipes]


def usual(folder) -> list[Recipe]:
    return space.usual_recipes(folder, WORKLOAD, Target(), progress=False)


def test_integers_alone_stand_beside_structures(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Three amounts in three forms, then 8 and 4 bits of the model as it is; read again from the folder."""
    recommended(monkeypatch, DropBlocks(remove=0.5), Distill(epochs=4), Quantize())
    recipes = usual(tmp_path)
    trained = ("DropBlocks", "Distill")
    assert kinds(recipes) == [*([trained, (*trained, "Quantize"), (*trained, "Quantize")] * 3), *[("Quantize",)] * 2]
    assert len({candidate.recipe.name for candidate in space.candidates_of(recipes)}) == 11
    recommended(monkeypatch)
    assert usual(tmp_path) == recipes


@pytest.mark.parametrize(
    ("stage", "found", "removed"),
    [
        # A quarter of one block rounds to none, and a half to as many as three quarters; channels go by eight.
        (DropBlocks(remove=0.5), {"blocks": (1, 1)}, [0.5]),
        (DropBlocks(remove=0.5), {"blocks": (1, 2)}, [0.25, 0.5, 0.75]),
        (PruneChannels(remove=0.5), {"widths": (30, 16)}, [0.4, 0.6, 0.75]),
        (PruneChannels(remove=0.5), {"widths": (30, 64)}, [0.2, 0.4, 0.6, 0.75]),
    ],
)
def test_amounts_that_take_nothing_are_left_out(monkeypatch, tmp_path, stage, found, removed) -> None:
    """A trial of them would fail, or be another one again."""
    recommended(monkeypatch, stage, Distill(epochs=4), **found)
    assert [recipe.stages[0].remove for recipe in usual(tmp_path)] == removed


def test_without_structure_there_are_integers(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    recommended(monkeypatch, Quantize())
    assert kinds(usual(tmp_path)) == [("Quantize",)] * 2


def test_without_integers_there_are_structures(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    recommended(monkeypatch, DropBlocks(remove=0.5), Distill(epochs=4))
    assert kinds(usual(tmp_path)) == [("DropBlocks", "Distill")] * 3


def test_nothing_to_make_smaller_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    recommended(monkeypatch)
    with pytest.raises(WrongUseError, match="nothing of this model can be made smaller"):
        usual(tmp_path)
    assert list(tmp_path.iterdir()) == []
