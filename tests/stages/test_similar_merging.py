"""Merging: channels that others resemble go, and the network computes what it computed, or nearly."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from compressor.errors import StageError
from compressor.pruning.merging.fed import Calibration, Noise
from compressor.stage import Context
from compressor.stages.similar_merging import MergeSimilar
from compressor.structure.plan import apply_plan_
from compressor.testing import check_stage
from compressor.workload import Workload
from workbench.same_data import same_data
from workbench.tiny import TinyResNet, make_workload


class Chain(nn.Module):
    """Convolution, normalization, activation, convolution, linear: eight channels between the convolutions."""

    def __init__(self, activation: nn.Module | None = None, *, normalized: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if normalized else nn.Identity()
        self.activation = activation or nn.ReLU()
        self.second = nn.Conv2d(8, 5, 3, padding=1)
        self.last = nn.Linear(5, 4)

    def forward(self, x):
        x = self.second(self.activation(self.norm(self.first(x))))
        return self.last(torch.relu(x).mean(dim=(2, 3)))


class Residual(nn.Module):
    """Two blocks that add to what a first layer makes: three layers make the same six channels, and three read them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(6, 4, 3, padding=1) for _ in range(2))
        self.outer = nn.ModuleList(nn.Conv2d(4, 6, 3, padding=1) for _ in range(2))
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        x = self.stem(x)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = x + outer(torch.relu(inner(torch.relu(x))))
        return self.last(torch.relu(x).mean(dim=(2, 3)))


def mlp(activation: nn.Module | None = None) -> nn.Sequential:
    """12 -> 8 -> 4 neurons."""
    return nn.Sequential(nn.Linear(12, 8), activation or nn.ReLU(), nn.Linear(8, 4)).eval()


def workload_of(model: nn.Module) -> Workload:
    inputs = torch.randn(64, 12)
    return same_data(model, [(inputs, torch.arange(64) % 4)], inputs[:2], loss=nn.functional.cross_entropy)


def alike_(layers: list[nn.Module], pairs: list[tuple[int, int, float]]) -> None:
    """Makes channel j of every layer `factor` times channel i, for (i, j, factor) of `pairs`."""
    with torch.no_grad():
        for layer in layers:
            for one, two, factor in pairs:
                layer.weight[two] = factor * layer.weight[one]
                layer.bias[two] = factor * layer.bias[one]


def drawn_(norm: nn.BatchNorm2d) -> None:
    """A normalization with random scales, shifts and statistics, as after training."""
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-0.5, 0.5)
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.5, 2.0)


def merged(stage: MergeSimilar, workload: Workload, seed: int = 0) -> tuple[nn.Module, Context]:
    context = Context(seed=seed, progress=False)
    return stage.apply(copy.deepcopy(workload.model), workload, context).eval(), context


def same(first: nn.Module, second: nn.Module, *shape: int) -> bool:
    """Whether both compute the same on new inputs, to 1e-5."""
    inputs = torch.randn(5, *shape)
    with torch.no_grad():
        return bool(torch.allclose(first(inputs), second(inputs), atol=1e-5))


EXACT = MergeSimilar(cosine=0.999, align=1)


def test_scaled_duplicates_of_neurons_merge_into_one() -> None:
    """Neurons 2 and 5 are 1 and 3 times neuron 0: 8 become 6, and its outgoing weights are a + b + 3 c."""
    model = mlp()
    alike_([model[0]], [(0, 2, 1.0), (0, 5, 3.0)])
    before = model[2].weight.detach().clone()
    narrow, context = merged(EXACT, workload_of(model))
    assert narrow[0].weight.shape == (6, 12)
    assert same(narrow, model, 12)
    # The largest of the three stays.
    wanted = before[:, 5] + (before[:, 0] + before[:, 2]) / 3
    assert any(torch.allclose(column, wanted, atol=1e-5) for column in narrow[2].weight.detach().T)
    assert context.plan[0]["why"]["group"] == "0"


@pytest.mark.parametrize("on", [Calibration(batches=2), Noise(samples=64)], ids=["data", "noise"])
def test_scaled_duplicates_before_a_normalization_merge(on) -> None:
    """What a normalization makes of two channels that are one but for a factor is one but for another factor."""
    model = Chain()
    alike_([model.first], [(1, 4, 0.5), (6, 3, 2.0)])
    drawn_(model.norm)
    with torch.no_grad():
        for one, two, factor, scale in ((1, 4, 0.5, 2.0), (6, 3, 2.0, 1.0)):
            for values in (model.norm.weight, model.norm.bias):
                values[two] = scale * values[one]
            model.norm.running_mean[two] = factor * model.norm.running_mean[one]
            model.norm.running_var[two] = factor**2 * (model.norm.running_var[one] + 1e-5) - 1e-5
    narrow, _ = merged(replace(EXACT, on=on), make_workload(model.eval()))
    assert narrow.norm.running_var.shape == (6,)
    assert same(narrow, model, 3, 11, 9)


def test_coupled_layers_lose_the_same_channels() -> None:
    """Where several layers make and read a residual stream, duplicates in all of them merge in all of them."""
    model = Residual().eval()
    alike_([model.stem, *model.outer], [(0, 3, 1.0), (2, 5, 0.25)])
    narrow, _ = merged(EXACT, make_workload(model))
    assert [narrow.stem.weight.shape[0], narrow.outer[1].weight.shape[0], narrow.last.in_features] == [4, 4, 4]
    assert same(narrow, model, 3, 8, 8)


def test_what_one_of_several_makers_tells_apart_stays() -> None:
    """Channels that only the first layer of a stream makes alike differ once the second added to them."""
    model = Residual().eval()
    alike_([model.stem], [(0, 3, 1.0)])
    with pytest.raises(StageError, match="no channels can be merged"):
        merged(EXACT, make_workload(model))


def test_a_flattened_map_merges_position_by_position() -> None:
    """A linear layer after `flatten` reads every channel at 16 places: each goes where the same place stays."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 4)).eval()
    alike_([model[0]], [(1, 4, 2.0)])
    narrow, _ = merged(EXACT, make_workload(model))
    assert narrow[3].in_features == 5 * 16
    assert same(narrow, model, 3, 8, 8)


def test_opposite_weights_do_not_merge() -> None:
    """Behind a ReLU a neuron of opposite weights fires exactly where the other does not."""
    model = mlp()
    alike_([model[0]], [(0, 2, -1.0), (1, 5, -2.0)])
    with pytest.raises(StageError, match="lower cosine"):
        merged(replace(EXACT, cosine=0.9), workload_of(model))


def test_a_factor_does_not_pass_every_activation() -> None:
    """The tanh of three times a number is not three times its tanh: equal ones merge, scaled ones do not."""
    model = mlp(nn.Tanh())
    alike_([model[0]], [(0, 2, 1.0), (1, 5, 6.0)])
    narrow, _ = merged(EXACT, workload_of(model))
    assert narrow[0].out_features == 7
    assert same(narrow, model, 12)


def test_equal_weights_with_other_biases_do_not_merge() -> None:
    """Of one direction but far apart in their biases, two neurons are not alike."""
    model = mlp()
    alike_([model[0]], [(0, 2, 1.0)])
    with torch.no_grad():
        model[0].bias[0], model[0].bias[2] = -2.0, 2.0
    with pytest.raises(StageError, match="no channels can be merged"):
        merged(EXACT, workload_of(model))


def test_a_fraction_takes_the_duplicates_first() -> None:
    """Of 8 neurons a quarter goes, the two that others stand in for: the function stays within a thousandth."""
    model = mlp()
    alike_([model[0]], [(1, 4, 0.5), (6, 3, 2.0)])
    narrow, context = merged(MergeSimilar(remove=0.25, align=1, on=Noise(samples=2000)), workload_of(model))
    assert narrow[0].out_features == 6
    assert context.details["channel_fraction_removed"] == 0.25
    inputs = torch.randn(5, 12)
    with torch.no_grad():
        assert torch.allclose(narrow(inputs), model(inputs), atol=2e-3 * float(model(inputs).abs().max()))


def test_a_sum_of_others_is_shared_out() -> None:
    """A linear neuron that is the sum of two others goes, and next to nothing is lost, though it resembles neither."""
    model = mlp(nn.Identity())
    with torch.no_grad():
        model[0].weight[7] = model[0].weight[1] - 0.5 * model[0].weight[4]
        model[0].bias[7] = model[0].bias[1] - 0.5 * model[0].bias[4]
    narrow, _ = merged(MergeSimilar(remove=0.13, align=1, on=Noise(samples=2000)), workload_of(model))
    assert narrow[0].out_features == 7
    inputs = torch.randn(5, 12)
    with torch.no_grad():
        assert torch.allclose(narrow(inputs), model(inputs), atol=1e-2)


def test_a_constant_goes_into_the_bias() -> None:
    """A neuron without weights gives its bias of 2 always: it goes, and the reader's bias takes it over."""
    model = mlp()
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = 0.0, 2.0
    narrow, _ = merged(MergeSimilar(remove=0.125, align=1, on=Noise(samples=256)), workload_of(model))
    assert narrow[0].out_features == 7
    assert torch.allclose(narrow[2].bias, model[2].bias + 2 * model[2].weight[:, 3], atol=1e-5)
    assert same(narrow, model, 12)


def test_merging_loses_less_than_removal(trained_workload) -> None:
    """Without training, a trained network with a quarter of its channels merged on noise is nearer to what it was."""
    from compressor.pruning.ranking.criteria import L1
    from compressor.stages.channel_pruning import PruneChannels

    model = trained_workload.model
    context = Context(progress=False)
    removed = PruneChannels(remove=0.25, criterion=L1(), align=1).apply(copy.deepcopy(model), trained_workload, context)
    narrow, told = merged(MergeSimilar(remove=0.25, align=1, on=Noise()), trained_workload)
    assert told.details["channel_fraction_removed"] == pytest.approx(
        context.details["channel_fraction_removed"], abs=0.05
    )
    inputs, _ = next(iter(trained_workload.validation))
    with torch.no_grad():
        wanted = model.eval()(inputs)
        ours = (narrow(inputs) - wanted).square().mean()
        theirs = (removed.eval()(inputs) - wanted).square().mean()
    assert float(ours) < float(theirs) / 3


def test_the_plan_rebuilds_the_shapes() -> None:
    """The plan narrows a fresh model of the same class to the same shapes, for the stored weights to fit."""
    workload = make_workload(TinyResNet().eval())
    narrow, context = merged(MergeSimilar(remove=0.25, align=1), workload)
    rebuilt = apply_plan_(TinyResNet(), context.plan)
    rebuilt.load_state_dict(narrow.state_dict())
    assert same(rebuilt.eval(), narrow, 3, 8, 8)


def test_equal_seeds_merge_alike() -> None:
    """One seed gives the same weights twice."""
    workload = make_workload(TinyResNet().eval())
    first, second = (
        merged(MergeSimilar(remove=0.25, align=1, on=Noise(samples=32)), workload, seed=3)[0] for _ in "ab"
    )
    assert all(
        torch.equal(*pair) for pair in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_what_cannot_be_merged_is_listed_with_its_reason() -> None:
    """A LayerNorm mixes its channels, and a GRU's units are not merged: both are told, nothing else is there."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(12, 8), nn.LayerNorm(8)
            self.units, self.last = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 4)

        def forward(self, x):
            return self.last(self.units(self.norm(self.first(x)).unsqueeze(1))[0][:, -1])

    with pytest.raises(StageError, match=r"mixes the channels.*not units"):
        merged(MergeSimilar(remove=0.25, align=1), workload_of(Mixed().eval()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of remove and cosine"),
        ({"remove": 0.2, "cosine": 0.9}, "exactly one of remove and cosine"),
        ({"remove": 25}, r"\[0, 1\); got 25; did you mean 0.25"),
        ({"cosine": 95}, r"\(0, 1\]; got 95; did you mean 0.95"),
        ({"cosine": -0.5}, r"\(0, 1\]; got -0.5"),
        ({"cosine": 2}, r"\(0, 1\]; got 2$"),
        ({"remove": 0.2, "align": 0}, "align is what widths are multiples of"),
        ({"remove": 0.2, "ignore": "layer1"}, r"write \('layer1',\)"),
    ],
)
def test_wrong_settings_are_refused(settings, message) -> None:
    """Settings are refused where they are written, before any work."""
    with pytest.raises(ValueError, match=message):
        MergeSimilar(**settings)


@pytest.mark.parametrize(("kind", "settings"), [(Noise, {"samples": 1}), (Calibration, {"batches": 0})])
def test_wrong_inputs_are_refused(kind, settings) -> None:
    """One sample has no deviation, and no batch has no sample."""
    with pytest.raises(ValueError, match="at least"):
        kind(**settings)


def test_calibration_data_of_single_samples_is_refused() -> None:
    """Batches of one sample have no statistics; noise is the way out."""
    workload = workload_of(mlp())
    with pytest.raises(StageError, match=r"set on=Noise\(\)"):
        merged(EXACT, replace(workload, calibration=[(torch.randn(1, 12), torch.zeros(1))]))


def test_a_threshold_keeps_the_contract() -> None:
    """Merging by cosine keeps what every stage keeps, and says how alike the most alike are where it is too high."""
    model = TinyResNet().eval()
    with torch.no_grad():
        model.layer1[0].conv1.weight[3] = 2 * model.layer1[0].conv1.weight[5]
    workload = make_workload(model)
    check_stage(MergeSimilar(cosine=0.95, align=1, on=Noise(samples=32)), workload)
    with pytest.raises(StageError, match=r"cosine=0.95, the most alike have 0\.\d+, with align=1"):
        merged(MergeSimilar(cosine=0.95, align=1), make_workload(TinyResNet().eval()))
