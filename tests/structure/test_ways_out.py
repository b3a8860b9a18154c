"""What a refusal advises helps in the very case: blocks and channels are named where the model has some that can go."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor import Context
from compressor.errors import StageError
from compressor.kept_state import private_copy
from compressor.stage import Stage
from compressor.stages import DropBlocks, Macs, PruneChannels
from workbench.same_data import three_classes


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(F.relu(self.inner(x)))


def residual() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), Residual(8), Residual(8), nn.Linear(8, 3))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def single() -> nn.Module:
    return nn.Linear(4, 3)


class Chosen(nn.Module):
    """A branch inside of one operator."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(torch.cond(h.sum() > 0, torch.relu, torch.tanh, (h,)))


class ChosenBesideBlocks(Chosen):
    def __init__(self) -> None:
        super().__init__()
        self.block = Residual(4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.block(x))


REFUSED = [
    (residual, PruneChannels(remove=0.3, align=1, ignore=("*",)), "; ignore fewer layers, drop blocks or quantize"),
    (plain, PruneChannels(remove=0.3, align=1, ignore=("*",)), "; ignore fewer layers or quantize instead"),
    (single, PruneChannels(remove=0.3, align=1), "; quantize instead"),
    (residual, PruneChannels(target=Macs(0.01), align=1), "; raise the target or let ShrinkStructure drop blocks too"),
    (plain, PruneChannels(target=Macs(0.01), align=1), "; raise the target"),
    (plain, DropBlocks(remove=0.5), "; prune channels or quantize instead"),
    (single, DropBlocks(remove=0.5), "; quantize instead"),
    (residual, DropBlocks(remove=0.5, blocks=("0",)), "; name other blocks or quantize instead"),
    (Chosen, PruneChannels(remove=0.3), r"torch's operator cond takes whole functions, .*\); quantize instead"),
]


@pytest.mark.parametrize(("build", "stage", "advice"), REFUSED, ids=lambda value: getattr(value, "__name__", None))
def test_advice_can_be_followed(build: type[nn.Module], stage: Stage, advice: str) -> None:
    """Nobody is sent to drop blocks of a model without any, or to prune what has no channel to lose."""
    model = build().eval()
    with pytest.raises(StageError) as caught:
        stage.apply(private_copy(model), three_classes(model, 4), Context(progress=False, details={}, plan=[]))
    assert caught.match(f"{advice}( instead)?$")
