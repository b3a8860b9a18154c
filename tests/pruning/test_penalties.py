"""What each penalty takes off the weights, by hand."""

import pytest
import torch
from torch import nn

from compressor.errors import StageError
from compressor.notes.training import ZeroWeights
from compressor.pruning.penalties import (
    GroupLasso,
    L1Penalty,
    L2Penalty,
    SlimmingPenalty,
    fitting_rates,
    group_factors,
    soft_threshold,
)


class Pair(nn.Module):
    """Two linear layers with a batch normalization between them: one group of two neurons that may go."""

    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2) if norm else nn.Identity()
        self.last = nn.Linear(2, 3)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[3.0, 0.0], [0.3, 0.0]]))
            self.first.bias.copy_(torch.tensor([4.0, 0.4]))

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.first(x))))


INPUTS = torch.randn(2, 2)
ALL = {"layers": ("*",), "length": 1.0}


def one_step(penalty, model, length=1.0):
    """The zeros after one step of `length`."""
    shrinkage = penalty.on(model.eval(), INPUTS, **ALL)
    with torch.no_grad():
        shrinkage.step_(length)
    told = shrinkage.zeros()
    counts = told.zero_weights if isinstance(told, ZeroWeights) else told.zero_channels
    return {item.layer: (item.zero, item.of) for item in counts}


def test_soft_threshold_by_hand() -> None:
    """Moved by 1 towards zero: -3 becomes -2, 0.5 becomes 0, 1 becomes 0."""
    assert soft_threshold(torch.tensor([-3.0, 0.5, 1.0, 2.0]), 1.0).tolist() == [-2.0, 0.0, 0.0, 1.0]


def test_group_factors_by_hand() -> None:
    """Norms of 5, 1, 0.5 and 0 that lose 1 keep four fifths, nothing, nothing and nothing."""
    factors = group_factors(torch.tensor([5.0, 1.0, 0.5, 0.0]), 1.0)
    assert factors.tolist() == pytest.approx([0.8, 0.0, 0.0, 0.0])


def test_no_penalty_changes_no_weight() -> None:
    """A threshold of zero leaves every group as it is, those that are zero included."""
    assert (group_factors(torch.tensor([5.0, 0.0]), 0.0) * torch.tensor([5.0, 0.0])).tolist() == [5.0, 0.0]


def test_l1_takes_the_same_off_every_weight() -> None:
    """Strength 0.5 in a step of 2 takes 1 off: 3 becomes 2 and 0.3 becomes 0; biases are left alone."""
    model = Pair()
    zeros = one_step(L1Penalty(strength=0.5), model, length=2.0)
    assert model.first.weight.tolist() == [[2.0, 0.0], [0.0, 0.0]]
    assert model.first.bias.tolist() == pytest.approx([4.0, 0.4])
    assert zeros["first"] == (3, 4)


def test_l2_divides_every_weight() -> None:
    """Strength 0.5 in a step of 2 halves every weight: 3 becomes 1.5."""
    model = Pair()
    one_step(L2Penalty(strength=0.5), model, length=2.0)
    assert model.first.weight.flatten().tolist() == pytest.approx([1.5, 0.0, 0.15, 0.0])


def test_group_lasso_takes_whole_neurons() -> None:
    """Neurons (3, 0, bias 4) and (0.3, 0, 0.4) of norms 5 and 0.5 lose sqrt(3): a factor of 1 - sqrt(3)/5, and zero."""
    model = Pair()
    zeros = one_step(GroupLasso(strength=1.0), model)
    left = 1 - 3**0.5 / 5
    assert model.first.weight.flatten().tolist() == pytest.approx([3 * left, 0.0, 0.0, 0.0])
    assert model.first.bias.tolist() == pytest.approx([4 * left, 0.0])
    assert zeros == {"first": (1, 2)}


def test_slimming_takes_the_scale_and_then_the_shift() -> None:
    """Scales 1 and 0.25 lose 0.5: 0.5 and 0; only the shift of the second is shrunk, from 2 to 1.5."""
    model = Pair(norm=True)
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([1.0, 0.25]))
        model.norm.bias.copy_(torch.tensor([2.0, 2.0]))
    zeros = one_step(SlimmingPenalty(strength=0.5), model)
    assert model.norm.weight.tolist() == pytest.approx([0.5, 0.0])
    assert model.norm.bias.tolist() == pytest.approx([2.0, 1.5])
    assert model.first.bias.tolist() == pytest.approx([4.0, 0.4])
    assert zeros == {"first": (1, 2)}


def test_slimming_refuses_where_there_is_no_scale() -> None:
    """A network without batch normalization is told to use another penalty."""
    with pytest.raises(StageError, match="use group_lasso"):
        SlimmingPenalty().on(Pair(), INPUTS, **ALL)


def test_coupled_layers_become_zero_together(tiny_cnn) -> None:
    """In a residual stage the stem and every block's last normalization lose the same channels in the same step."""
    model = tiny_cnn(4).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("bn1", "layer1.0.bn2", "layer1.1.bn2")):
                parameter[1] = 1e-4
    penalty = GroupLasso(strength=1e-3)
    shrinkage = penalty.on(model, torch.randn(2, 3, 8, 8), **ALL)
    with torch.no_grad():
        shrinkage.step_(1.0)
    for norm in (model.bn1, model.layer1[0].bn2, model.layer1[1].bn2):
        assert norm.bias[1] == 0
        assert [value == 0 for value in norm.weight.tolist()] == [False, True, False, False]


def test_normalized_weights_are_no_target_of_group_lasso() -> None:
    """Behind a layer that is normalized right away only the scale 3 and the shift 4 shrink: by 1 - sqrt(2)/5."""
    model = Pair(norm=True)
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([3.0, 0.3]))
        model.norm.bias.copy_(torch.tensor([4.0, 0.4]))
    one_step(GroupLasso(strength=1.0), model)
    left = 1 - 2**0.5 / 5
    assert model.norm.weight.tolist() == pytest.approx([3 * left, 0.0])
    assert model.norm.bias.tolist() == pytest.approx([4 * left, 0.0])
    assert model.first.weight[:, 0].tolist() == pytest.approx([3.0, 0.3])


def test_frozen_and_unwanted_layers_are_left_alone() -> None:
    """Globs choose the layers, and frozen weights are no candidates: with neither left, the error says why."""
    model = Pair().eval()
    with pytest.raises(StageError, match="first does not match other"):
        GroupLasso().on(model, INPUTS, layers=("other",), length=1.0)
    model.first.requires_grad_(requires_grad=False)
    with pytest.raises(StageError, match="frozen"):
        GroupLasso().on(model, INPUTS, **ALL)


@pytest.mark.parametrize("kind", [L1Penalty, L2Penalty, GroupLasso, SlimmingPenalty])
def test_a_strength_is_positive(kind) -> None:
    """A strength of zero or below is refused where it is written."""
    with pytest.raises(ValueError, match="strength"):
        kind(strength=0.0)


def test_fitting_rates_by_hand() -> None:
    """In a training of 5, the smallest of five channels loses 4 times its size, the next its own, the last 1/64."""
    norms = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0])
    lost = 5 * fitting_rates(norms, 5.0) / norms
    assert lost.tolist() == pytest.approx([1 / 4, 4.0, 1.0, 1 / 64, 1 / 16])


@pytest.mark.parametrize("steps", [1, 10, 200])
def test_without_a_strength_zeros_do_not_depend_on_the_number_of_steps(steps: int) -> None:
    """A training of one step, ten or two hundred, whatever its rates: a quarter of the channels is zero in the end."""
    torch.manual_seed(0)
    for penalty in (GroupLasso(), SlimmingPenalty()):
        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval()
        nn.init.uniform_(model[1].weight, 0.5, 1.5)
        shrinkage = penalty.on(model, torch.randn(2, 3, 8, 8), layers=("*",), length=7.0)
        with torch.no_grad():
            for _ in range(steps):
                shrinkage.step_(7.0 / steps)
        (count,) = shrinkage.zeros().zero_channels
        assert (count.zero, count.of) == (4, 16)
        smallest = model[1].weight.detach().abs()
        assert int((smallest == 0).sum()) == 4
        assert float(smallest.max()) > 1.4


def test_without_a_strength_weights_below_a_share_of_the_median_go() -> None:
    """L1 takes 0.8 of the median off all: of weights 0.1, 0.5, 1, 2 and 3 the first two become zero."""
    model = nn.Linear(5, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.1, 0.5, 1.0, 2.0, 3.0]]))
    shrinkage = L1Penalty().on(model, torch.randn(2, 5), layers=("*",), length=4.0)
    with torch.no_grad():
        for _ in range(4):
            shrinkage.step_(1.0)
    assert model.weight[0].tolist() == pytest.approx([0.0, 0.0, 0.2, 1.2, 2.2])
    assert shrinkage.zeros().penalty_strength == pytest.approx(0.2)
