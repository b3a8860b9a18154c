"""What readers are fed under batch statistics, and batch normalization that follows what changed before it."""

import copy

import torch
from torch import nn

from compressor.pruning.merging.readers import Reader, moments_of
from compressor.pruning.merging.repair import repair_norms_


def network() -> nn.Sequential:
    """Two convolutions with a normalization between them, whose scales and shifts are random."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 2.0)
        model[1].bias.uniform_(-1.0, 1.0)
    return model


def test_norms_work_by_the_batch_and_stay_as_they_were() -> None:
    """However wrong the running statistics are for the inputs, a reader is fed the norm's own means and deviations."""
    model = network()
    with torch.no_grad():
        model[1].running_mean.fill_(50.0)
        model[1].running_var.fill_(9.0)
    before = copy.deepcopy(model.state_dict())
    reader = Reader(module="2", tensor="2.weight", dim=1, places=torch.arange(4)[:, None], norm=None, holds=True)
    found = moments_of(model, [reader], [torch.randn(8, 3, 6, 6) for _ in range(3)])[reader]
    assert torch.allclose(found.mean, model[1].bias.double(), atol=1e-4)
    assert torch.allclose(found.about(holds=True).diagonal(), model[1].weight.double() ** 2, rtol=1e-3)
    assert found.rows == 3 * 8 * 36
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[1].training


def test_a_norm_follows_what_comes_in() -> None:
    """Inputs of a norm became 3 x + 2: with statistics that fit the inputs it gives what it gave, to the end."""
    batches = [torch.randn(16, 3, 5, 5) for _ in range(2)]
    original = network()
    fed = torch.cat([original[0](batch).detach() for batch in batches]).movedim(1, -1).flatten(0, 2)
    with torch.no_grad():
        original[1].running_mean.copy_(fed.mean(dim=0))
        original[1].running_var.copy_(fed.var(dim=0, unbiased=False))
        model = copy.deepcopy(original)
        model[0].weight.mul_(3.0)
        model[0].bias.mul_(3.0).add_(2.0)
    assert repair_norms_(model, original, {}, batches) == ["1"]
    inputs = torch.randn(4, 3, 5, 5)
    with torch.no_grad():
        assert torch.allclose(model(inputs), original(inputs), atol=0.02)


def test_a_narrower_norm_keeps_its_own_statistics() -> None:
    """Where channels 0 and 2 are left and nothing else changed, their statistics are what they were."""
    original = network()
    with torch.no_grad():
        original[1].running_mean.copy_(torch.arange(4.0))
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).eval()
    with torch.no_grad():
        for own, whole in zip(model[0].parameters(), original[0].parameters(), strict=True):
            own.copy_(whole[[0, 2]])
        model[1].running_mean.copy_(torch.tensor([0.0, 2.0]))
    assert repair_norms_(model, original, {"1": [0, 2]}, [torch.randn(8, 3, 4, 4)]) == []
    assert model[1].running_mean.tolist() == [0.0, 2.0]
