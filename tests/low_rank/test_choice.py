"""How ranks are chosen for one layer by itself."""

import torch
from torch import nn

from compressor.latency.operators import operators_of_layer
from compressor.low_rank.choice import by_energy, take_apart
from compressor.low_rank.layers import Layer
from compressor.low_rank.settings import Energy
from compressor.structure.factored.chains import CP


def terms_looked_at(weight: torch.Tensor, kept: float) -> tuple[list[int], tuple[int, ...] | None]:
    """The numbers of outer products that were searched for, and the ranks that were chosen."""
    outputs, inputs, *kernel = weight.shape
    model = nn.Sequential(nn.Conv2d(inputs, outputs, tuple(kernel), bias=False))
    with torch.no_grad():
        model[0].weight.copy_(weight)
    layer = Layer(name="0", shape=tuple(weight.shape), operators=tuple(operators_of_layer(model[0], (1, inputs, 8, 8))))
    found = take_apart(model, layer, (CP,), None)
    chosen = by_energy(found, Energy(kept), 4)
    return list(found.by[CP]._found), None if chosen is None else chosen.ranks


def test_a_number_of_outer_products_that_loses_too_much_ends_the_search() -> None:
    """Noise keeps no 99.9 % at the highest number that holds less than the layer; none below it is searched for."""
    torch.manual_seed(0)
    looked_at, chosen = terms_looked_at(torch.randn(16, 16, 3, 3), 0.999)
    assert len(looked_at) == 1
    assert chosen is None


def test_from_the_highest_number_down_the_lowest_that_holds_enough_is_taken() -> None:
    """A sum of four outer products: all numbers down to four hold half of it, which is the least that is looked at."""
    torch.manual_seed(0)
    made, taken, moved = torch.randn(16, 4), torch.randn(16, 4), torch.randn(9, 4)
    weight = torch.einsum("or,ir,pr->oip", made, taken, moved).reshape(16, 16, 3, 3)
    looked_at, chosen = terms_looked_at(weight, 0.5)
    assert looked_at == sorted(looked_at, reverse=True)
    assert looked_at[-1] == 4
    assert chosen == (4,)
