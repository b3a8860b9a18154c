"""Features compared by where they are large, against numbers by hand."""

import pytest
import torch
from torch import nn

from compressor.errors import StageError
from compressor.stage import Context
from compressor.stages import AttentionMaps, Distill, FeatureValues, Hint
from workbench.same_data import same_data


def test_attention_by_hand():
    """Squares (9, 16) of one channel against (25, 0): as far apart as (9, 16) / sqrt(337) and (1, 0)."""
    own = torch.tensor([[[[3.0, -4.0]]]], dtype=torch.float64)
    wanted = torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]], dtype=torch.float64)
    size = 337**0.5
    expected = ((9 / size - 1) ** 2 + (16 / size) ** 2) ** 0.5
    assert float(AttentionMaps().distance(own, wanted, 1)) == pytest.approx(expected, rel=1e-6)
    # Channels last, as of tokens.
    moved = (own.movedim(1, -1), wanted.movedim(1, -1))
    assert float(AttentionMaps().distance(*moved, -1)) == pytest.approx(expected, rel=1e-6)


def test_equal_attention_is_at_no_distance_and_has_a_gradient():
    """Also where features are in another size, turned in sign, or all zero."""
    features = torch.randn(2, 3, 4, 4).requires_grad_()
    found = AttentionMaps().distance(features, -5 * features.detach(), 1)
    found.backward()
    assert float(found.detach()) == pytest.approx(0, abs=1e-5)
    assert features.grad.isfinite().all()
    nothing = torch.zeros(2, 3, 4, 4).requires_grad_()
    AttentionMaps().distance(nothing, torch.zeros(2, 3, 4, 4), 1).backward()
    assert nothing.grad.isfinite().all()


class Network(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.early, self.late = nn.Conv2d(1, width, 3, padding=1), nn.Linear(width, 3)

    def forward(self, x):
        return self.late(self.early(x).relu().mean(dim=(2, 3)))


def _taught(**settings):
    torch.manual_seed(0)
    teacher = Network(5).eval()
    rows = torch.randn(12, 1, 6, 6)
    data = [(part, teacher(part).argmax(dim=1)) for part in rows.split(6)]
    workload = same_data(teacher, data, rows[:2])
    student, context = Network(2), Context(seed=0, progress=False)
    stage = Distill(teacher=teacher, epochs=2, tail_epochs=0, views=1, soft_weight=0.5, **settings)
    return stage.apply(student, workload, context), context


def test_attention_needs_no_map_between_widths():
    """Two channels learn where five attend, with nothing between; values need a convolution that fits them."""
    _, context = _taught(features=("early",), compare=AttentionMaps())
    assert context.details["adapters"] == {"early": "Identity"}
    _, context = _taught(features=("early",), compare=FeatureValues())
    assert context.details["adapters"] == {"early": "Conv2d"}


def test_vectors_have_no_places_to_attend_to():
    with pytest.raises(StageError, match="no places to attend to; name modules that give maps"):
        _taught(features=(Hint(student="late", teacher="late"),), compare=AttentionMaps())
