"""Networks whose channels change places compute what they computed, and keep more under a pattern."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressor.sparsity.layers import sparse_weights
from compressor.sparsity.patterns import SemiStructured
from compressor.sparsity.reordering import reorder_
from compressor.stage import Context
from compressor.structure.plan import apply_plan_
from compressor.workload import predict
from workbench.tiny import TinyResNet, make_workload


class Branches(nn.Module):
    """Concatenation, a depthwise convolution, a residual sum and a flattened end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.left, self.right = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.each = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.norm = nn.BatchNorm2d(24)
        self.out = nn.Conv2d(24, 16, 1)
        self.hidden, self.last = nn.Linear(16 * 4 * 4, 32), nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        both = torch.cat([self.left(x), self.right(x)], dim=1)
        x = x + self.out(F.relu(self.norm(self.each(both))))
        x = F.max_pool2d(x, 2).flatten(1)
        return self.last(F.relu(self.hidden(x)))


class Attention(nn.Module):
    """One layer of a transformer on rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(24, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.last = nn.Linear(32, 4)

    def forward(self, x):
        return self.last(self.layer(self.inner(x.transpose(1, 2).flatten(2))).mean(dim=1))


def kept(model, pattern) -> float:
    """The magnitude that the pattern keeps of the weights that it fits."""
    weights, _ = sparse_weights(model, layers=("*",), ignore=())
    total = 0.0
    for weight in weights:
        if pattern.unfit(weight) is None:
            values = weight.arranged(weight.parameter.detach().abs())
            total += float(values[pattern.kept(values)].sum())
    return total


@pytest.mark.parametrize(("kind", "least"), [(TinyResNet, 5), (Branches, 4), (Attention, 1)])
def test_another_order_keeps_more_and_computes_the_same(kind, least: int) -> None:
    """Groups are reordered, the outputs stay, more magnitude stays under 2:4, and the plan does the same to a copy."""
    model = kind().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.bias)
    pattern = SemiStructured(permute=True, escapes=2)
    workload, context = make_workload(copy.deepcopy(model)), Context(progress=False)
    fitting = [weight for weight in sparse_weights(model, layers=("*",), ignore=())[0] if pattern.unfit(weight) is None]
    other = copy.deepcopy(model)
    told = reorder_(other, [weight.of(other) for weight in fitting], pattern, workload, context)
    inputs = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(predict(other, inputs), predict(model, inputs), atol=1e-5)
    moved = [one for one in told if not one.reason]
    assert len(moved) >= least
    assert all(one.kept > one.before for one in moved)
    assert kept(other, pattern) > 1.004 * kept(model, pattern)
    rebuilt = apply_plan_(copy.deepcopy(model), context.plan)
    assert all(
        torch.equal(a, b) for a, b in zip(rebuilt.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_the_gain_that_is_told_is_the_gain_of_the_network() -> None:
    """What all groups gain together is what the network keeps more."""
    model = TinyResNet().eval()
    pattern, context = SemiStructured(permute=True, escapes=0), Context(progress=False)
    before = kept(model, pattern)
    fitting = [weight for weight in sparse_weights(model, layers=("*",), ignore=())[0] if pattern.unfit(weight) is None]
    told = reorder_(model, fitting, pattern, make_workload(copy.deepcopy(model)), context)
    gains = sum(one.kept - one.before for one in told if not one.reason)
    assert kept(model, pattern) - before == pytest.approx(gains, rel=1e-4)
    assert {one.group: one.reason for one in told}["linear"] == "it makes the model's output"
