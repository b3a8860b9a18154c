"""What every test shares: seeds, a cache of its own, brief timing, and the tiny network as fixtures."""

import copy
import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from compressor.workload import Workload
from workbench.tiny import TinyResNet, make_workload, synthetic_images

# Kind of file, number of files.
Told = Callable[[str, int], None]

# Tests run beside each other on few cores: two threads each would wait for one another. Processes that tests start
# inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Measured latencies go to a folder of the session, not to the user's, and no test is given another's stages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESSOR_STORE", "off")
        patch.setenv("COMPRESSOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        # Tests run beside each other, and wait for nobody.
        patch.setenv("COMPRESSOR_TURNS", str(tmp_path_factory.mktemp("turns")))
        patch.setenv("COMPRESSOR_QUIET_SECONDS", "0")
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _timed_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are timed for a moment instead of seconds: tests check decisions and forms, not speed-ups."""
    from compressor.comparing import timing as together
    from compressor.measuring import measure, timing

    brief = functools.partial(timing.time_interleaved, seconds=0.3, repeats=5)
    for module in (measure, together):
        monkeypatch.setattr(module, "time_interleaved", brief)


@pytest.fixture
def own_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are timed by the thread's own seconds on the CPU: what else the machine runs meanwhile does not count."""
    from compressor.latency import table
    from compressor.measuring import timing

    for module in (table, timing):
        monkeypatch.setattr(module, "perf_counter", time.thread_time)


@pytest.fixture
def told_damage(record_property: Callable[[str, object], None]) -> Told:
    """Tells `python -m benchmarks.mutations` which files a test damages, and how many."""

    def tell(kind: str, files: int) -> None:
        record_property("damaged", kind)
        record_property("files", files)

    return tell


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


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Debian's Chromium without a window, through Playwright; skips where one of them is missing."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("needs /usr/bin/chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield opened
        opened.close()
