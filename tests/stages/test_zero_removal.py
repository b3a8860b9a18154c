"""Channels that are zero go, and the network computes what it computed."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from compressor.errors import StageError
from compressor.stage import Context
from compressor.stages.zero_removal import RemoveZeroChannels
from compressor.target import Target
from compressor.testing import check_stage
from workbench.tiny import make_workload


class Chain(nn.Module):
    """Convolution, normalization, ReLU, convolution, linear: six channels between the convolutions."""

    def __init__(self, *, padding: int = 0, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 5, 3, padding=padding, bias=bias)
        self.last = nn.Linear(5, 4)

    def forward(self, x):
        x = self.second(torch.relu(self.norm(self.first(x))))
        return self.last(torch.relu(x).mean(dim=(2, 3)))


def slimmed(model: Chain, shift: float) -> Chain:
    """The model with the scales of channels 1 and 4 at zero, and their shifts at `shift`."""
    with torch.no_grad():
        for parameter in model.norm.parameters():
            parameter.uniform_(0.5, 1.0)
        model.norm.running_mean.uniform_(-0.2, 0.2)
        model.norm.weight[[1, 4]] = 0
        model.norm.bias[[1, 4]] = shift
    return model.eval()


def removed(stage, workload, seed=0):
    """The narrowed model, and what the stage told."""
    context = Context(seed=seed, progress=False)
    return stage.apply(copy.deepcopy(workload.model), workload, context), context


def same(first: nn.Module, second: nn.Module) -> bool:
    """Whether both compute the same on new inputs, larger than the examples."""
    inputs = torch.randn(5, 3, 11, 9)
    with torch.no_grad():
        return bool(torch.allclose(first(inputs), second(inputs), atol=1e-5))


STAGE = RemoveZeroChannels(align=1)


def test_zero_channels_go_and_nothing_changes() -> None:
    """Channels whose scale is zero and whose shift is below zero die in the ReLU: 6 become 4, outputs stay."""
    workload = make_workload(slimmed(Chain(padding=1), shift=-0.3))
    model, context = removed(STAGE, workload)
    assert model.first.weight.shape[0] == 4
    assert model.second.weight.shape[1] == 4
    assert same(model, workload.model)
    (entry,) = context.plan
    assert entry["why"]["removed_scores"] == [0.0, 0.0]
    assert len(entry["why"]["kept_scores"]) == 4
    assert context.details["constants_folded_into"] == []


def test_a_constant_is_folded_into_the_bias() -> None:
    """A shift of 0.7 passes the ReLU: without padding, the next layer's bias takes it over exactly."""
    workload = make_workload(slimmed(Chain(), shift=0.7))
    model, context = removed(STAGE, workload)
    assert model.first.weight.shape[0] == 4
    assert same(model, workload.model)
    assert context.details["constants_folded_into"] == ["second"]
    given = 0.7 * workload.model.second.weight[:, [1, 4]].sum(dim=(1, 2, 3))
    assert torch.allclose(model.second.bias, workload.model.second.bias + given, atol=1e-6)


def test_a_constant_that_meets_zero_padding_stays() -> None:
    """At the border a padded layer sees less of the constant: the channels stay, and the reason names the layer."""
    workload = make_workload(slimmed(Chain(padding=1), shift=0.7))
    with pytest.raises(StageError, match=r"2 channels without weights stay: its constant of 0\.7 meets the zero pad"):
        removed(STAGE, workload)


def test_a_constant_without_a_holder_stays() -> None:
    """A layer with neither bias nor normalization cannot hold a constant."""
    workload = make_workload(slimmed(Chain(bias=False), shift=0.7))
    with pytest.raises(StageError, match="no bias and no batch normalization"):
        removed(STAGE, workload)


def test_running_means_take_constants_over() -> None:
    """In a network whose layers have no biases the mean of the next normalization moves instead."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 1, bias=False),
        nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 64, 4),
    )  # fmt: skip
    with torch.no_grad():
        model[1].weight[2] = 0
        model[1].bias[2] = 0.5
    workload = make_workload(model.eval())
    narrow, context = removed(STAGE, workload)
    assert narrow[0].weight.shape[0] == 5
    assert context.details["constants_folded_into"] == ["3"]
    inputs = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(narrow(inputs), model(inputs), atol=1e-5)


def test_channels_that_nobody_reads_go() -> None:
    """Where the next layer's weights on a channel are zero, the channel goes whatever makes it."""
    model = Chain(padding=1).eval()
    with torch.no_grad():
        model.second.weight[:, 3] = 0
    workload = make_workload(model)
    narrow, _ = removed(STAGE, workload)
    assert narrow.first.weight.shape[0] == 5
    assert same(narrow, model)


def test_one_layer_of_a_residual_group_is_not_enough(tiny_cnn) -> None:
    """A channel of a residual stage goes when every layer that adds to it is silent, and not before."""
    model = tiny_cnn(6).eval()
    workload = make_workload(model)
    norms = [model.bn1, model.layer1[0].bn2, model.layer1[1].bn2]
    with torch.no_grad():
        norms[0].weight[2] = norms[0].bias[2] = 0
        with pytest.raises(StageError, match="0 channels"):
            removed(STAGE, workload)
        for norm in norms[1:]:
            norm.weight[2] = norm.bias[2] = 0
    narrow, context = removed(STAGE, workload)
    assert narrow.conv1.weight.shape[0] == 5
    assert narrow.layer2[0].conv1.weight.shape[1] == 5
    assert same(narrow, model)
    assert [entry["group"] for entry in (item["why"] for item in context.plan)] == ["conv1"]


def test_widths_stay_aligned() -> None:
    """Of six channels of which two are zero, five stay with align=5 and all with align=3."""
    workload = make_workload(slimmed(Chain(padding=1), shift=-0.3))
    model, _ = removed(replace(STAGE, align=5), workload)
    assert model.first.weight.shape[0] == 5
    assert same(model, workload.model)
    model, _ = removed(replace(STAGE, align=4), workload)
    assert model.first.weight.shape[0] == 4
    with pytest.raises(StageError, match="multiples of 6"):
        removed(replace(STAGE, align=6), workload)


def test_a_layer_never_disappears() -> None:
    """Where every channel is zero, one stays."""
    model = Chain(padding=1).eval()
    with torch.no_grad():
        model.norm.weight.zero_()
    narrow, _ = removed(STAGE, make_workload(model))
    assert narrow.first.weight.shape[0] == 1
    assert same(narrow, model)


def test_recurrent_and_mixing_layers_are_left_alone() -> None:
    """A channel that a LayerNorm averages over cannot go unseen: it stays, with that as the reason."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.LayerNorm(6), nn.Linear(6, 4)).eval()
    with torch.no_grad():
        model[1].weight[2] = model[1].bias[2] = 0
    with pytest.raises(StageError, match="mixes the channels"):
        removed(STAGE, make_workload(model))


class Tagger(nn.Module):
    """An LSTM over the rows of an image, and a classifier on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(24, 6, batch_first=True)
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        return self.last(self.lstm(x.transpose(1, 2).flatten(2))[0][:, -1])


def test_recurrent_units_that_are_zero_go() -> None:
    """A unit of an LSTM whose rows are zero in all four gates never leaves zero: 6 units become 5."""
    model = Tagger().eval()
    with torch.no_grad():
        for name, parameter in model.lstm.named_parameters():
            rows = parameter.view(4, 6, -1) if "weight" in name else parameter.view(4, 6, 1)
            rows[:, 2] = 0
    narrow, context = removed(STAGE, make_workload(model))
    assert narrow.lstm.hidden_size == 5
    assert narrow.lstm.weight_hh_l0.shape == (20, 5)
    inputs = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(narrow(inputs), model(inputs), atol=1e-6)
    assert context.plan[0]["why"]["removed_scores"] == [0.0]


def test_a_recurrent_unit_with_a_bias_stays() -> None:
    """Weights of zero with a bias give a state that moves with time: that is nothing a later layer could hold."""
    model = Tagger().eval()
    with torch.no_grad():
        for name, parameter in model.lstm.named_parameters():
            parameter.view(4, 6, -1)[:, 2] = 0.5 * ("bias" in name)
    with pytest.raises(StageError, match="lstm"):
        removed(STAGE, make_workload(model))


def test_neurons_of_a_feed_forward_block_go() -> None:
    """In a transformer's feed-forward block zero neurons go, whatever the normalization around it mixes."""
    model = nn.Sequential(
        nn.Flatten(2), nn.TransformerEncoderLayer(64, 4, dim_feedforward=6, batch_first=True, dropout=0.0),
        nn.Flatten(), nn.Linear(192, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[1].linear1.weight[4] = model[1].linear1.bias[4] = 0
    narrow, _ = removed(STAGE, make_workload(model))
    assert narrow[1].linear1.out_features == narrow[1].linear2.in_features == 5
    inputs = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(narrow(inputs), model(inputs), atol=1e-5)


def test_threshold_decides_what_is_zero() -> None:
    """Weights of 1e-4 stay by default, and go at a threshold of 1e-3; the change of the output is reported."""
    model = Chain(padding=1).eval()
    with torch.no_grad():
        model.norm.weight[0] = 1e-4
        model.norm.bias[0] = 0
    workload = make_workload(model)
    with pytest.raises(StageError, match="0 channels") as refused:
        removed(STAGE, workload)
    assert "set align=1" not in str(refused.value)
    narrow, context = removed(replace(STAGE, threshold=1e-3), workload)
    assert narrow.first.weight.shape[0] == 5
    assert 0 < context.details["largest_output_change"] < 1e-3


def test_ignored_layers_keep_their_channels() -> None:
    """A glob of `ignore` protects a group by the name of any of its layers."""
    workload = make_workload(slimmed(Chain(padding=1), shift=-0.3))
    with pytest.raises(StageError, match=r"ignored by 'norm'.*ignore fewer layers$"):
        removed(replace(STAGE, ignore=("norm",)), workload)


def test_the_contract_is_kept() -> None:
    """The stage passes what every stage must pass, on a network with zeros."""
    check_stage(RemoveZeroChannels(align=1), make_workload(slimmed(Chain(), shift=0.7)))


def test_a_removal_that_changes_the_outputs_is_refused() -> None:
    """Where the forward pass divides by the width, even a silent channel counts: it stays, and the reason says so."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(192, 6), nn.Linear(6, 4)

        def forward(self, x):
            x = torch.relu(self.first(x.flatten(1)))
            return self.second(x / x.shape[1])

    model = Mean().eval()
    with torch.no_grad():
        model.first.weight[1] = 0
        model.first.bias[1] = -1.0
    with pytest.raises(StageError, match="computes something else than with them"):
        removed(STAGE, make_workload(model))


def test_targets_decide_the_default_width() -> None:
    """Without `align` the width is what the target's kernels are built for: 16 of 24 channels stay, not 15."""
    model = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 64, 4)).eval()
    with torch.no_grad():
        model[0].weight[:9] = 0
        model[0].bias[:9] = 0
    context = Context(progress=False, target=Target())
    workload = make_workload(model)
    narrow = RemoveZeroChannels().apply(copy.deepcopy(model), workload, context)
    assert narrow[0].weight.shape[0] == 16


@pytest.mark.parametrize("wrong", [{"threshold": -1.0}, {"align": 0}, {"ignore": "layer1"}])
def test_wrong_parameters_are_refused(wrong) -> None:
    """A negative threshold, a width of zero and a string for globs are refused where they are written."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RemoveZeroChannels(**wrong)
