"""What every test shares: seeds, a tiny residual CNN and synthetic data that it can learn."""

import copy
import functools
import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.workload import Workload
from compressor.workloads.residual import BasicBlock as Block

# Tests run beside each other on few cores: two threads each would wait for one another. Processes that tests start
# inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


class TinyResNet(nn.Module):
    """A residual CNN of two stages for (batch, 3, 8, 8) images and 4 classes."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(Block(width, width), Block(width, width))
        self.layer2 = nn.Sequential(
            Block(width, 2 * width, 2), Block(2 * width, 2 * width), Block(2 * width, 2 * width)
        )
        self.linear = nn.Linear(2 * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.linear(x.mean(dim=(2, 3)))


def synthetic_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise images of 4 classes; each class brightens its own quadrant."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 4
    images = torch.randn(count, 3, 8, 8, generator=generator)
    for index, target in enumerate(targets.tolist()):
        row, column = divmod(target, 2)
        images[index, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 0.7
    return images, targets


def make_workload(model: nn.Module, *, train: int = 256, test: int = 64, batch_size: int = 32) -> Workload:
    """A classification workload on synthetic images."""
    return Workload.from_datasets(
        model,
        train=synthetic_images(train, seed=1),
        test=synthetic_images(test, seed=2),
        batch_size=batch_size,
        calibration_samples=64,
        name="tiny",
    )


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Measured latencies go to a folder of the session, not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESSOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _timed_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are timed for a moment instead of seconds: tests check decisions and forms, not speed-ups."""
    from compressor import runtime
    from compressor.measuring import measure

    brief = functools.partial(runtime.time_interleaved, seconds=0.3, repeats=5)
    monkeypatch.setattr(measure, "time_interleaved", brief)


@pytest.fixture(scope="session")
def tiny_cnn() -> type[TinyResNet]:
    return TinyResNet


@pytest.fixture
def tiny_workload() -> Workload:
    torch.manual_seed(0)
    return make_workload(TinyResNet().eval())


@pytest.fixture(scope="session")
def _trained_model() -> TinyResNet:
    torch.manual_seed(0)
    model = TinyResNet().train()
    images, targets = synthetic_images(512, seed=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(6):
        for batch in torch.randperm(512).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), targets[batch]).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture
def trained_workload(_trained_model: TinyResNet) -> Workload:
    return make_workload(copy.deepcopy(_trained_model))
