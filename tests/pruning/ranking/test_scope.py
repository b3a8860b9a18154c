"""Scopes: what is ranked against what, and how many channels are left, by hand."""

import pytest
import torch
from torch import Tensor

from compressor.pruning.ranking.scope import Global, Isomorphic, PerLayer, kept_widths, topology
from compressor.structure.couplings import Coupled, Part


def group(name: str, width: int, parts: str = "make read", kind: str = "channels") -> Coupled:
    """A group of `width` with one part for each word."""
    indices = tuple(range(width))
    made = tuple(
        Part(
            module=f"{name}.{number}",
            tensors=((f"{name}.{number}.weight", int(word == "read")),),
            indices=indices,
            channels=indices,
            makes=word == "make",
            is_norm=word == "norm",
        )
        for number, word in enumerate(parts.split())
    )
    return Coupled(name=name, width=width, parts=made, makes_output=False, opaque=False, kind=kind)


def rising(width: int, scale: float = 1.0) -> Tensor:
    """Scores scale, 2 scale, 3 scale, ..."""
    return scale * torch.arange(1, width + 1, dtype=torch.float64)


def left(scope, groups, scores, fraction, *, before=None, align=1, **settings) -> list[int]:
    before = {item.name: item.width for item in groups} if before is None else before
    widths = kept_widths(
        scope, groups, scores, fraction, before=before, align=align if callable(align) else lambda _: align, **settings
    )
    return [widths[item.name] for item in groups]


def test_per_layer_takes_the_same_fraction_of_each() -> None:
    """A quarter of 4, 8 and 12 leaves 3, 6 and 9, whatever the scores."""
    groups = [group("a", 4), group("b", 8), group("c", 12)]
    scores = {"a": torch.zeros(4), "b": rising(8, 100), "c": rising(12)}
    assert left(PerLayer(), groups, scores, 0.25) == [3, 6, 9]


def test_global_takes_the_least_over_all() -> None:
    """Scores 1, 1, 1, 5 over their mean 2 are 0.5 and 2.5; those of an even layer are 1: three of the first go."""
    groups = [group("a", 4), group("b", 4)]
    scores = {"a": torch.tensor([1.0, 1.0, 1.0, 5.0]), "b": torch.full((4,), 70.0)}
    assert left(Global(), groups, scores, 3 / 8) == [1, 4]
    # Taken as they are, 5 is below 70, but one channel stays in every layer.
    assert left(Global(), groups, scores, 0.5, across=lambda values: values) == [1, 3]


def test_what_went_before_counts() -> None:
    """Half of 8 that are 6 by now leaves 4; what is below already stays."""
    groups = [group("a", 6)]
    assert left(PerLayer(), groups, {"a": rising(6)}, 0.5, before={"a": 8}) == [4]
    assert left(Global(), groups, {"a": rising(6)}, 0.5, before={"a": 8}) == [4]
    assert left(PerLayer(), groups, {"a": rising(6)}, 0.1, before={"a": 8}) == [6]


def test_each_group_has_its_own_alignment() -> None:
    """Half of 6 heads is 3; half of 20 channels is 10, rounded up to 16; never above what there is."""
    groups = [group("heads", 6, kind="heads"), group("wide", 20), group("small", 3)]
    scores = {item.name: rising(item.width) for item in groups}
    align = {"heads": 1, "wide": 8, "small": 8}
    assert left(PerLayer(), groups, scores, 0.5, align=lambda item: align[item.name]) == [3, 16, 3]


def test_isomorphic_ranks_among_the_like() -> None:
    """Blocks with a norm lose half among them, plain ones half among them: 2 + 6 and 4 of 8."""
    groups = [group("a", 8, "make norm read"), group("b", 8, "make norm read"), group("c", 8)]
    scores = {"a": torch.full((8,), 1.0), "b": rising(8), "c": rising(8)}
    scores["a"][:2] = 100.0
    isomorphic = left(Isomorphic(), groups, scores, 0.5)
    assert isomorphic[0] + isomorphic[1] == 8
    assert isomorphic[0] == 2
    assert isomorphic[2] == 4


def test_topology_knows_roles_and_not_names_or_widths() -> None:
    """Alike are groups whose parts play the same roles in any order; another kind or one more reader is different."""
    assert topology(group("a", 8)) == topology(group("b", 4, "read make"))
    assert topology(group("a", 8)) != topology(group("a", 8, kind="heads"))
    assert topology(group("a", 8)) != topology(group("a", 8, "make read read"))


@pytest.mark.parametrize("scope", [Global(), PerLayer(), Isomorphic()])
def test_nothing_to_choose_from(scope: Global | PerLayer | Isomorphic) -> None:
    """Without groups there are no widths; without a fraction every width stays."""
    assert kept_widths(scope, [], {}, 0.5, before={}, align=lambda _: 1) == {}
    assert left(scope, [group("a", 5)], {"a": rising(5)}, 0.0) == [5]
