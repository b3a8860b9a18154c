"""What is ranked against what, by hand and beside torch's own pruning."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from compressor.pruning.ranking.scope import Global, PerLayer
from compressor.sparsity.masks import PerRow, kept_units

SCORES = {"a": torch.tensor([[1.0, 2], [3, 4]]), "b": torch.tensor([[10.0, 0.5], [20, 30]])}
SIZES = {name: torch.ones(2, 2, dtype=torch.long) for name in SCORES}


@pytest.mark.parametrize(
    ("scope", "wanted"),
    [
        # The least four of all are 0.5, 1, 2 and 3; 4 is the best of its layer.
        (Global(), {"a": [[False, False], [False, True]], "b": [[True, False], [True, True]]}),
        (PerLayer(), {"a": [[False, False], [True, True]], "b": [[False, False], [True, True]]}),
        (PerRow(), {"a": [[False, True], [False, True]], "b": [[True, False], [False, True]]}),
    ],
    ids=str,
)
def test_scopes_by_hand(scope, wanted) -> None:
    """Half of eight weights go: the least of all, of each layer, or of each row."""
    kept = kept_units(SCORES, SIZES, 0.5, scope)
    assert {name: values.tolist() for name, values in kept.items()} == wanted


def test_no_layer_is_emptied() -> None:
    """All of the small layer would go by rank; its best weight stays, and the other layer gives one more."""
    scores = {"small": torch.tensor([[0.1, 0.2]]), "large": torch.tensor([[1.0, 2, 3, 4]])}
    sizes = {name: torch.ones_like(values, dtype=torch.long) for name, values in scores.items()}
    kept = kept_units(scores, sizes, 0.5, Global())
    assert kept["small"].tolist() == [[False, True]]
    assert kept["large"].tolist() == [[False, False, True, True]]


def test_units_count_by_their_size() -> None:
    """Of units of 3 and 1 elements, half of eight elements is a large one and a small one."""
    scores = {"a": torch.tensor([[1.0, 2, 3, 4]])}
    sizes = {"a": torch.tensor([[3, 1, 3, 1]])}
    assert kept_units(scores, sizes, 0.5, PerLayer())["a"].tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("sparsity", [0.1, 0.37, 0.5, 0.9])
def test_layers_and_networks_rank_as_in_torch(sparsity: float) -> None:
    """Torch's l1_unstructured and global_unstructured make the same weights zero."""
    layers = {"first": nn.Linear(30, 20), "second": nn.Linear(30, 10)}
    scores = {name: layer.weight.detach().abs().clone() for name, layer in layers.items()}
    sizes = {name: torch.ones_like(values, dtype=torch.long) for name, values in scores.items()}
    whole = kept_units(scores, sizes, sparsity, Global())
    alone = kept_units(scores, sizes, sparsity, PerLayer())
    for name, layer in layers.items():
        prune.l1_unstructured(layer, "weight", amount=sparsity)
        assert torch.equal(layer.weight_mask.bool(), alone[name])
        prune.remove(layer, "weight")
        with torch.no_grad():
            layer.weight.copy_(scores[name])
    prune.global_unstructured(
        [(layer, "weight") for layer in layers.values()], pruning_method=prune.L1Unstructured, amount=sparsity
    )
    assert all(torch.equal(layer.weight_mask.bool(), whole[name]) for name, layer in layers.items())
