"""Runs of a comparison side by side: their order, what is refused, and the table of one after the other."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from compressor.comparing.arms import Arm
from compressor.comparing.comparison import compare
from compressor.comparing.runs import apart
from compressor.comparing.working import Came, Order, came_of
from compressor.errors import ExecutorError
from compressor.recipe.recipe import Recipe
from compressor.running.executors.local import Local
from compressor.running.executors.on_dask import Dask
from compressor.running.executors.on_ray import Ray
from compressor.running.executors.protocol import Executor
from compressor.running.pipeline import Pipeline
from compressor.running.session import Session
from compressor.stage import Context, Effect
from compressor.stages import Distill, DropBlocks, FineTune, Quantize
from compressor.storage import read_json, sha256
from compressor.store.kept import Store
from compressor.target import Target
from compressor.workload import Workload
from workbench.tiny import TinyResNet, make_workload

TREE = """
name: tree
stages:
  - drop_blocks: {remove: 0.5}
  - sweep: [{fine_tune: {epochs: 2, tail_epochs: 0}}, {distill: {epochs: 2, tail_epochs: 0}}]
  - sweep: [null, quantize]
"""


@dataclass(frozen=True, kw_only=True)
class Fails:
    """A stage whose run fails."""

    effect: ClassVar[Effect] = Effect.VALUES

    def apply(self, model: torch.nn.Module, workload: Workload, context: Context) -> torch.nn.Module:
        raise OSError("it fails")


def tiny() -> Workload:
    """What workers make for themselves."""
    torch.manual_seed(0)
    return make_workload(TinyResNet().eval(), train=512)


def refusing() -> Workload:
    raise OSError("no data here")


def arm(name: str, *stages: Any, seed: int = 0) -> Arm:
    return Arm(row=name, folder=name, pipeline=Pipeline(stages), seed=seed)


def test_runs_that_begin_alike_do_not_begin_together() -> None:
    """Beside a run that drops and distills, first one that begins otherwise, then one that shares one stage."""
    running = arm("a", DropBlocks(remove=0.5), Distill(), Quantize())
    same = arm("b", DropBlocks(remove=0.5), Distill())
    near = arm("c", DropBlocks(remove=0.5), FineTune())
    other = arm("d", DropBlocks(remove=0.4), Distill())
    seeded = arm("e", DropBlocks(remove=0.5), Distill(), seed=1)
    assert apart([same, near, other], []) is same
    assert apart([same, near, other], [running]) is other
    assert apart([same, near], [running]) is near
    assert apart([same, seeded], [running]) is seeded
    assert apart([same], [running]) is same


@pytest.mark.cluster
def test_workers_that_cannot_make_the_workload_are_refused_before_any_run(tmp_path) -> None:
    """What the workload's function raises in a worker is told; no run has begun."""
    with pytest.raises(ExecutorError, match=r"workers cannot make the workload \(OSError: no data here\)"):
        compare(
            ["int8"], tiny(), out=tmp_path / "out", executor=Local(workers=1), workload_from=refusing, progress=False
        )
    assert not list(tmp_path.glob("out/*/report.json"))


def test_a_workload_that_cannot_be_sent_is_refused(tmp_path) -> None:
    """A lock in the loss: the way out names a function."""
    workload, lock = tiny(), threading.Lock()

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with lock:
            return torch.nn.functional.cross_entropy(outputs, targets)

    object.__setattr__(workload, "loss", loss)
    with pytest.raises(ExecutorError, match=r"the workload cannot be sent to workers.*package\.module:function"):
        compare(["int8"], workload, out=tmp_path, executor=Local(workers=1), progress=False)


@pytest.mark.parametrize("workers", [0, -1])
def test_a_number_of_workers_that_is_none_is_refused(tmp_path, workers) -> None:
    """Before any work."""
    with pytest.raises(ExecutorError, match=f"at least 1; got {workers}"):
        compare(["int8"], tiny(), out=tmp_path, workers=workers, progress=False)


@pytest.mark.cluster
def test_without_a_shared_disk_files_are_sent_along(tmp_path, monkeypatch) -> None:
    """A worker that does not see the comparison's folder gives the files that it would have written there."""
    monkeypatch.setenv("COMPRESSOR_STORE", str(tmp_path / "elsewhere"))
    session = Session(store=Store(tmp_path / "out" / "shared"))
    (tmp_path / "out").mkdir()
    order = Order.of(tmp_path / "out", session, {"target": Target(), "accept_changes": False}, times="times.json")
    assert order.is_here
    near = came_of(tiny, arm("one", DropBlocks(remove=0.5)), order)
    order.forget()
    assert not order.is_here
    far = came_of(tiny, arm("one", DropBlocks(remove=0.5)), order)
    assert near.files == {}
    assert (near.name, [one.key for one in near.worked]) == (far.name, [one.key for one in far.worked])
    written = tmp_path / "out" / "one"
    assert far.files["model.onnx"] == (written / "model.onnx").read_bytes()
    paths = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    assert set(far.files) == paths
    far.write(tmp_path / "home")
    assert {path.name for path in (tmp_path / "home" / "one").glob("*.onnx")} == {"model.onnx"}
    assert far.rows.keys() == near.rows.keys()


def table(folder: Path) -> Any:
    """What must not depend on where runs were worked: all but times and the seconds of stages."""
    found = read_json(folder / "comparison.json")
    names = ("name", "score", "drop", "size_bytes", "compressed_bytes", "alike", "control")
    rows = [{name: row[name] for name in names} for row in found["rows"]]
    shared = [(each["stage"], each["recipes"]) for each in found["cost"]["shared"]]
    files = {path.parent.name: sha256(path.read_bytes()) for path in sorted(folder.glob("*/model.onnx"))}
    failures = {name: text.partition(":")[0] for name, text in found["failures"].items()}
    return rows, shared, files, found["p_values"], failures


def compared(folder: Path, executor: Executor | None) -> Any:
    recipes = [*Recipe.loads_all(TREE), Pipeline([Fails()])]
    compare(recipes, tiny(), out=folder, executor=executor, workload_from=tiny, controls=False, progress=False)
    return table(folder)


_serial: list[Any] = []


@pytest.fixture
def one_after_the_other(tmp_path_factory, resampled_in_full) -> Any:
    """The table of this process alone, made once; its intervals come from as many resamples as those of workers."""
    if not _serial:
        _serial.append(compared(tmp_path_factory.mktemp("serial"), None))
    return _serial[0]


def workers_of(process: int) -> list[int]:
    """The processes that `process` has started, that theirs have, and so on."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == process:
                child = int(path.parent.name)
                found += [child, *workers_of(child)]
        except (OSError, IndexError):
            continue
    return found


def kill_one(is_worker: Callable[[str], bool], when: Path, killed: list[int], over: threading.Event) -> None:
    """Ends a worker by SIGKILL once a run of the comparison at `when` is in the middle of a training."""
    while not over.is_set():
        if any(when.glob("*/stages/*/snapshots/*")):
            for process in workers_of(os.getpid()):
                if is_worker(Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")):
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)
                    return
        time.sleep(0.05)


def needs(library: str) -> Any:
    return pytest.mark.skipif(find_spec(library) is None, reason=f"{library} is not installed: make test-clusters")


def executors() -> list[Any]:
    return [
        pytest.param(Local(workers=2), lambda command: "popen_loky" in command, id="local"),
        pytest.param(Dask(workers=2), lambda command: "spawn_main" in command, id="dask", marks=needs("distributed")),
        pytest.param(Ray(workers=2), lambda command: command.startswith("ray::work"), id="ray", marks=needs("ray")),
    ]


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("executor", "is_worker"), executors())
def test_side_by_side_with_a_worker_killed_gives_the_table_of_one_after_the_other(
    tmp_path, one_after_the_other, executor, is_worker
) -> None:
    """Rows, letters, files, what was shared, and the failure of the recipe that fails."""
    killed: list[int] = []
    over = threading.Event()
    killer = threading.Thread(target=kill_one, args=(is_worker, tmp_path, killed, over))
    killer.start()
    try:
        found = compared(tmp_path, executor)
    finally:
        over.set()
        killer.join()
    assert killed, "no worker was killed: make the trainings longer"
    assert found == one_after_the_other
    assert len(found[2]) == 4
    assert found[4] == {"fails": "StageError"}
    assert not (tmp_path / ".workers").exists()


def test_what_came_is_small_where_the_disk_is_shared() -> None:
    """Reprs of what travels show no bytes."""
    assert "files" not in repr(Came(name="a", report=None, worked=(), rows={}, files={"model.onnx": b"x" * 99}))  # type: ignore[arg-type]
