"""Chains of layers in the place of one: their form, their plan entry, and what they compute at full rank."""

import json

import pytest
import torch
from torch import nn

from compressor.errors import StorageError
from compressor.structure.checkpoint import load_checkpoint, save_checkpoint
from compressor.structure.factored.chains import (
    CP,
    SPATIAL,
    SVD,
    TUCKER,
    Chain,
    chain_of,
    full_ranks,
    unit_values,
    ways,
    weight_of,
    why_not,
)
from compressor.structure.plan import apply_plan_

LAYERS = {
    "wide linear": (nn.Linear(4, 9), (5, 4)),
    "narrow linear": (nn.Linear(9, 4, bias=False), (2, 3, 9)),
    "1x1": (nn.Conv2d(5, 7, 1, stride=2), (2, 5, 6, 7)),
    "3x3": (nn.Conv2d(3, 5, 3, padding=1), (2, 3, 8, 7)),
    "many inputs": (nn.Conv2d(40, 2, 3, padding=1), (2, 40, 5, 5)),
    "uneven, reflected": (
        nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), padding_mode="reflect", bias=False),
        (2, 4, 9, 8),
    ),
    "dilated, same": (nn.Conv2d(4, 2, (2, 3), dilation=(1, 2), padding="same", padding_mode="circular"), (2, 4, 7, 9)),
    "1d": (nn.Conv1d(4, 6, 5, stride=2, padding=2, padding_mode="replicate"), (2, 4, 11)),
    "3d": (nn.Conv3d(2, 3, (1, 3, 2), padding=(0, 1, 1)), (2, 2, 3, 5, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_at_full_ranks_the_chain_computes_what_the_layer_computes(name):
    """Whatever the kernel, step, dilation and padding, and however it is taken apart."""
    layer, shape = LAYERS[name]
    x, weight = torch.randn(*shape), weight_of(layer)
    for by in ways(weight.shape):
        chain = chain_of(layer, by, unit_values(weight, by, full_ranks(weight.shape, by)))
        torch.testing.assert_close(chain(x), layer(x), atol=1e-5, rtol=1e-5)
        # All positions but the last layer's bias go through thinner layers.
        assert chain.bias is layer.bias


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    "settings", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}, {"bias": False}]
)
def test_a_recurrent_module_behind_a_projection_of_full_rank_computes_the_same(kind, settings):
    """Sequences, packed ones and given states; every direction, and the layers above untouched."""
    layer = kind(5, 7, **settings).eval()
    weight = weight_of(layer)
    assert tuple(weight.shape) == (layer.weight_ih_l0.shape[0] * (2 if layer.bidirectional else 1), 5)
    chain = chain_of(layer, SVD, unit_values(weight, SVD, full_ranks(weight.shape, SVD)))
    x = torch.randn(4, 3, 5)
    _, state = layer(x)
    packed = nn.utils.rnn.pack_padded_sequence(
        x, torch.tensor([4, 2, 1] if not layer.batch_first else [3, 3, 2, 1]), batch_first=layer.batch_first
    )
    for given in ((x,), (x, state), (packed,)):
        wanted, got = layer(*given), chain(*given)
        torch.testing.assert_close(got[0][0], wanted[0][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got[1], wanted[1], atol=1e-5, rtol=1e-5)
    assert chain.hidden_size == 7
    assert chain.input_size == 5
    assert chain.recurrent.weight_hh_l0 is layer.weight_hh_l0
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = chain.nothing_like_it


def test_which_ways_there_are_and_their_full_ranks():
    """A matrix has one way, a kernel of several rows and columns four; the full ranks are those of the unfoldings."""
    assert ways((8, 4)) == ways((8, 4, 1, 1)) == (SVD,)
    assert ways((8, 4, 3)) == ways((8, 4, 3, 1)) == (SVD, TUCKER, CP)
    assert ways((8, 4, 3, 5)) == (SVD, SPATIAL, TUCKER, CP)
    assert full_ranks((8, 4, 3, 5), SVD) == (8,)
    assert full_ranks((80, 4, 3, 5), SVD) == (60,)
    assert full_ranks((8, 4, 3, 5), SPATIAL) == (12,)
    assert full_ranks((8, 4, 3, 5), TUCKER) == (8, 4)
    assert full_ranks((8, 4, 3, 5), CP) == (32,)
    assert full_ranks((8, 20, 3), CP) == (24,)
    assert full_ranks((20, 4, 3), CP) == (12,)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(8, 8, 3, groups=8), "depthwise"),
        (nn.Conv2d(8, 8, 3, groups=2), "2 groups"),
        (nn.ConvTranspose2d(8, 8, 3), "ConvTranspose2d"),
        (nn.Bilinear(2, 3, 4), "Bilinear"),
        (type("Own", (nn.LSTM,), {})(2, 3), "Own is no nn.LSTM"),
        (nn.GRUCell(2, 3), "GRUCell"),
    ],
)
def test_other_layers_are_refused_with_the_reason(layer, reason):
    assert reason in why_not(layer)


class Two(nn.Module):
    """Two layers, one of them under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.again = self.first
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x):
        return self.again(x)


PLAN = [
    {
        "kind": "factor",
        "layers": {"first": {"by": "svd", "ranks": [3], "shape": [8, 6]}, "conv": {"by": "svd", "ranks": [2]}},
    }
]


def test_a_plan_puts_chains_everywhere_where_the_layer_stood():
    """Both names of a shared layer lead to the one chain; its sizes, weight and bias can be read as before."""
    model = apply_plan_(Two().eval(), json.loads(json.dumps(PLAN)))
    chain = model.first
    assert isinstance(chain, Chain)
    assert model.again is chain
    assert not chain.training
    assert [tuple(part.weight.shape) for part in chain] == [(3, 6), (8, 3)]
    assert (chain.in_features, chain.out_features) == (6, 8)
    torch.testing.assert_close(chain.weight, chain[1].weight @ chain[0].weight)
    assert (model.conv.in_channels, model.conv.out_channels) == (1, 4)
    assert not hasattr(model.conv, "weight")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"absent": {"by": "svd", "ranks": [1]}}, "'absent'"),
        ({"first": {"by": "svd", "ranks": [7]}}, r"in \[1, 6\]"),
        ({"first": {"by": "svd", "ranks": [0]}}, r"in \[1, 6\]"),
        ({"first": {"by": "svd", "ranks": [True]}}, r"in \[1, 6\]"),
        ({"first": {"by": "svd", "ranks": [2, 2]}}, r"in \[1, 6\]"),
        ({"conv": {"by": "tucker", "ranks": [4, 2]}}, r"in \[1, 4\] and in \[1, 1\]"),
        ({"first": {"by": "tucker", "ranks": [2, 2]}}, "factorised by svd; got 'tucker'"),
        ({"first": {"by": "svd", "ranks": [2], "shape": [6, 8]}}, r"of shape \(6, 8\)"),
        ({"first": None}, "got None"),
    ],
)
def test_a_plan_that_does_not_fit_changes_nothing(entry, message):
    """The message names the layer and what would fit; the model stays whole."""
    model = Two()
    good = {"conv": {"by": "svd", "ranks": [2]}} if "conv" not in entry else {}
    with pytest.raises(ValueError, match=message):
        apply_plan_(model, [{"kind": "factor", "layers": good | entry}])
    assert type(model.first) is nn.Linear
    assert type(model.conv) is nn.Conv2d


def test_a_checkpoint_holds_the_values_and_the_plan_the_form(tmp_path):
    """A model whose chains were trained is read back to the bit from its class, and refused where the class differs."""
    model = apply_plan_(Two(), PLAN).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    save_checkpoint(tmp_path, model, PLAN)
    loaded = load_checkpoint(tmp_path, Two)
    x = torch.randn(3, 6)
    assert torch.equal(loaded(x), model(x))
    with pytest.raises(StorageError, match="'first'"):
        load_checkpoint(tmp_path, lambda: nn.ModuleDict({"first": nn.Linear(8, 6), "conv": nn.Conv2d(1, 4, 3)}))
