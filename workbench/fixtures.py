"""What every test shares: seeds, a cache of its own, brief timing, and the tiny network as fixtures."""

import copy
import functools
import gc
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from compressor import intervals
from compressor.structure.calling.draws import seed_torch
from compressor.workload import Workload
from workbench.remembered_exports import remembered
from workbench.tiny import TinyResNet, make_workload, synthetic_images

# Kind of file, number of files.
Told = Callable[[str, int], None]
# How long two files are timed against each other at most, and in how many sessions.
_SECONDS, _REPEATS = 0.1, 5
_RESAMPLES = {name: getattr(intervals, name) for name in ("_RESAMPLES", "_FEW_RESAMPLES")}

# Tests run beside each other on few cores: two threads each would wait for one another. Processes that tests start
# inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
# What the imports of all tests make stays for good: nothing looks for garbage in it, now or later.
gc.disable()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Measured latencies go to a folder of the session, not to the user's, and no test is given another's stages."""
    from compressor.measuring import measure

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESSOR_STORE", "off")
        patch.setenv("COMPRESSOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        # Tests run beside each other, and wait for nobody.
        patch.setenv("COMPRESSOR_TURNS", str(tmp_path_factory.mktemp("turns")))
        patch.setenv("COMPRESSOR_QUIET_SECONDS", "0")
        # Many tests measure the same file.
        patch.setattr(measure, "compressed_size", functools.lru_cache(maxsize=200)(measure.compressed_size))
        gc.collect()
        gc.freeze()
        gc.enable()
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    seed_torch(0)


@pytest.fixture(scope="session", autouse=True)
def _timed_briefly() -> Iterator[None]:
    """Files are timed for a moment instead of seconds, whoever asks: tests check decisions and forms, not speed-ups.

    Those that ask for `own_seconds` are about durations, and are given what they ask for.
    """
    from compressor.measuring import node_times, timing

    in_full, profiled_in_full = timing._repeats, node_times._profiled

    @functools.wraps(in_full)
    def repeats(*files: Any, seconds: float, repeats: int, **settings: Any) -> Any:
        return in_full(*files, seconds=min(seconds, _SECONDS), repeats=min(repeats, _REPEATS), **settings)

    def profiled(file: bytes, inputs: Any, threads: int, seconds: float) -> Any:
        return profiled_in_full(file, inputs, threads, min(seconds, _SECONDS))

    with pytest.MonkeyPatch.context() as patch:
        if not hasattr(in_full, "__wrapped__"):  # the tests of benchmarks have fixtures of their own
            patch.setattr(timing, "_repeats", repeats)
            patch.setattr(node_times, "_profiled", profiled)
        yield


@pytest.fixture(scope="session", autouse=True)
def _resampled_briefly() -> Iterator[None]:
    """Intervals of metrics that are no means come from a tenth of the resamples, but in the tests of intervals."""
    with pytest.MonkeyPatch.context() as patch:
        for name in _RESAMPLES:
            patch.setattr(intervals, name, 200)
        yield


@pytest.fixture
def resampled_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals come from as many resamples as ever."""
    for name, count in _RESAMPLES.items():
        monkeypatch.setattr(intervals, name, count)


@pytest.fixture(scope="session", autouse=True)
def _written_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One model, by all that it is, is given to an exporter once a session; its file is cleaned and verified each time.

    The processes of a session share what was written. The tests of exporters, in `tests/files`, call them every time.
    """
    from compressor.files import export, exporters

    place = tmp_path_factory.getbasetemp()
    place = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "write", functools.partial(remembered, exporters.write, place / "written"))
        yield


@pytest.fixture(autouse=True)
def _opened_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files from elsewhere are opened in this process, as files are that were opened before.

    Tests of files that the process of their own is there for replace this fixture by one that does nothing.
    """
    from compressor.files import opening

    def here(path: Path, sample: Any, limits: Any, watcher: Any, asked: dict[str, Any]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return opening.prepare(path, sample, limits=limits, watcher=watcher, **asked)

    monkeypatch.setattr(opening, "_in_a_process", here)


@pytest.fixture
def own_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are timed by the thread's own seconds on the CPU: what else the machine runs meanwhile does not count."""
    from compressor.latency import table
    from compressor.measuring import timing

    for module in (table, timing):
        monkeypatch.setattr(module, "perf_counter", time.thread_time)
    monkeypatch.setattr(timing, "_repeats", timing._repeats.__wrapped__)  # type: ignore[attr-defined]


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
