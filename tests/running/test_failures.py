"""Whatever a stage, the user's code or a library raises in a run is one typed error, or a stage rolled back."""

import dataclasses
import errno
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from compressor import Budget, Effect, Pipeline
from compressor.errors import (
    BudgetError,
    CompressorError,
    ExportError,
    RunFolderError,
    StageError,
    WorkloadError,
    WriteError,
)
from compressor.report.record import Step
from compressor.running import run as running
from compressor.running.failures import ends_the_run, explained, in_short, reason
from compressor.workload import Workload

FILE = Path(__file__).name


class Scaled(nn.Module):
    """A layer that fails once its flag is set."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.broken = False

    def forward(self, x: Tensor) -> Tensor:
        if self.broken:
            raise KeyError("no such table")  # line of the layer
        return self.linear(x)


def small_workload(**changes: Any) -> Workload:
    """Four numbers in, four classes out, with the given fields changed."""
    inputs = torch.randn(24, 4)
    data = (inputs, inputs.argmax(dim=1))
    model = nn.Sequential(Scaled(), nn.ReLU(), nn.Linear(4, 4)).eval()
    made = Workload.from_datasets(model, train=data, test=data, validation=data, batch_size=8, name="small")
    return dataclasses.replace(made, **changes)


@dataclass(frozen=True, kw_only=True)
class Acting:
    """A stage that does what it is told."""

    effect: ClassVar[Effect] = Effect.VALUES
    action: Callable[[nn.Module, Workload], Any] = dataclasses.field(repr=False)

    def apply(self, model: nn.Module, workload: Workload, context: Any) -> Any:
        return self.action(model, workload)


def kept(model: nn.Module, _: Workload) -> nn.Module:
    return model


def raising(error: BaseException) -> Callable[..., Any]:
    def action(*_: Any, **__: Any) -> Any:
        raise error

    return action


def break_layer(model: nn.Module, workload: Workload) -> nn.Module:
    model[0].broken = True
    model(workload.example_inputs)
    return model


ERRORS = [
    ValueError("7 is no width"),
    RuntimeError("shape '[2, 3]' is invalid"),
    KeyError("weight"),
    AssertionError(),
    IndexError("index 5 is out of bounds"),
    StopIteration(),
    NotImplementedError("aten::foo"),
    RecursionError("maximum recursion depth exceeded"),
    torch.linalg.LinAlgError("not positive-definite"),
    type("OddError", (Exception,), {})("mine"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_anything_becomes_one_typed_error(error: Exception) -> None:
    """Stage, place and cause are there, and a sentence with the type, the message and a way out."""
    with pytest.raises(StageError) as caught, explained("quantize", 2):
        raise error
    found = caught.value
    assert (found.stage, found.stage_number, found.__cause__) == ("quantize", 2, error)
    assert found.layer is not None
    assert f"{FILE}:" in found.layer
    assert str(found).startswith("stage 2, quantize, in ")
    assert type(error).__name__ in found.sentence
    assert "run again" in found.sentence


def test_an_error_that_cannot_say_what_it_is_is_typed_all_the_same() -> None:
    """Neither a message that raises nor a comparison that does gets in the way."""

    class Mute(Exception):  # noqa: N818 - no failure of ours
        def __str__(self) -> str:
            raise RuntimeError("no text")

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("no comparison")

        __hash__ = None

    with pytest.raises(StageError, match="Mute: no message; put "), explained("quantize", 2):
        raise Mute from Mute()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GeneratorExit()])
def test_requests_to_stop_pass(error: BaseException) -> None:
    """Ctrl-C is no failure of a stage."""
    with pytest.raises(type(error)) as caught, explained("quantize", 2):
        raise error
    assert caught.value is error


def leave(*_: Any, **__: Any) -> Any:
    sys.exit(3)


@pytest.mark.parametrize("budget", [None, Budget(max_drop=0.9)])
def test_code_that_exits_has_failed(budget: Budget | None, tmp_path: Path) -> None:
    """sys.exit() inside a stage is rolled back under a budget, and a typed error without."""
    pipeline = Pipeline([Acting(action=leave), Acting(action=kept)], budget=budget)
    if budget is None:
        with pytest.raises(StageError, match=f"^stage 1, acting.*SystemExit: 3; code .* must raise .*{FILE}:"):
            pipeline.run(small_workload(), out=tmp_path, progress=False)
    else:
        report = pipeline.run(small_workload(), out=tmp_path, progress=False).report
        assert not report.steps[1].kept
        assert "could not be applied: SystemExit: 3" in report.steps[1].reason
        assert report.steps[2].measurement is not None


class Leaving(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return leave()


class LeavingData:
    def __iter__(self) -> Iterator[Any]:
        leave()
        yield


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": nn.Sequential(nn.Linear(4, 4), Leaving())}, "does not take example_inputs"),
        ({"train": LeavingData()}, "train cannot be read"),
        ({"loss": leave}, "(the loss|the workload cannot be tried, in)"),
    ],
)
def test_a_workload_whose_code_exits_is_refused(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    """The process would have ended without a word."""
    with pytest.raises(WorkloadError, match=f"{told}.*SystemExit: 3"):
        Pipeline([Acting(action=kept)]).run(small_workload(**changes), out=tmp_path, progress=False)


def test_what_is_typed_stays_what_it_is() -> None:
    """An ExportError or BudgetError gains the stage, the innermost one that is known."""
    with pytest.raises(BudgetError) as caught, explained("outer", 1), explained("inner", 3):
        raise BudgetError(1.0, 2.0)
    assert str(caught.value) == f"stage 3, inner: {caught.value.sentence}"
    assert caught.value.least == 2.0
    with pytest.raises(ExportError) as export, explained("reference", 0):
        raise ExportError("no exporter")
    assert str(export.value) == "reference: no exporter"


def test_the_layer_is_named_through_the_chain() -> None:
    """The module and the line of its forward, also where a library or the package has wrapped the error since."""
    model = nn.Sequential(nn.ReLU(), nn.Sequential(Scaled()))
    model[1][0].broken = True

    def export() -> None:
        try:
            model(torch.randn(2, 4))
        except KeyError as error:
            raise ExportError("it does not export") from error

    with pytest.raises(ExportError) as caught, explained("quantize", 1):
        export()
    assert caught.value.layer is not None
    assert caught.value.layer.startswith("'1.0' (Scaled), ")
    assert FILE in caught.value.layer
    assert "it arose in '1.0' (Scaled)" in reason(caught.value)


def test_torchs_own_layers_are_named_with_the_line_that_calls_them() -> None:
    """A convolution of the wrong width fails inside torch; the line told is not torch's."""
    with pytest.raises(StageError) as caught, explained("prune_channels", 1):
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(5, 4, 1))(torch.randn(1, 3, 2, 2))
    assert caught.value.layer is not None
    assert caught.value.layer.startswith("'1' (Conv2d), ")
    assert FILE in caught.value.layer


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("onnxruntime: std::bad_alloc"),
    ],
)
def test_a_lack_of_memory_is_told_with_what_saves_some(error: Exception) -> None:
    """Smaller batches help there, and nothing that is wrong with a line."""
    with pytest.raises(StageError, match="smaller batches and fewer calibration samples"), explained("distill", 1):
        raise error


def test_messages_are_one_line_without_the_machines_paths() -> None:
    """Pages of a library's graph are cut, and folders of this machine are left out."""
    text = in_short(RuntimeError(f"first\n\n  second in {Path(torch.__file__)} " + "x" * 5000))
    assert text.startswith("RuntimeError: first second in torch")
    assert len(text) < 700
    assert in_short(AssertionError()) == "AssertionError: no message"


def test_folders_that_fail_end_a_run() -> None:
    """A full disk or a foreign folder is no fault of one stage."""
    full, elsewhere, stage = WriteError(errno.ENOSPC, "full"), RunFolderError("held"), StageError("nothing to do")
    for error in (full, elsewhere, stage):
        assert ends_the_run(error)  # nobody's stage
        error.stage = "quantize"
    assert [ends_the_run(error) for error in (full, elsewhere, stage)] == [True, True, False]


def test_without_a_budget_the_typed_error_ends_the_run_and_leaves_what_is_finished(tmp_path: Path) -> None:
    """The second stage fails in a layer: it is named, and the same run goes on from the first."""
    same = small_workload()
    with pytest.raises(StageError) as caught:
        Pipeline([Acting(action=kept), Acting(action=break_layer)]).run(same, out=tmp_path, progress=False)
    error = caught.value
    assert (error.stage, error.stage_number) == ("acting", 2)
    assert str(error).startswith("stage 2, acting, in '0' (Scaled), ")
    assert isinstance(error.__cause__, KeyError)
    assert (tmp_path / "stages" / "01-acting" / "outcome.json").exists()
    first = (tmp_path / "stages" / "01-acting" / "outcome.json").stat().st_mtime_ns
    with pytest.raises(StageError, match=r"stage 2, acting, in .*: ValueError: other"):
        Pipeline([Acting(action=kept), Acting(action=raising(ValueError("other")))]).run(
            same, out=tmp_path, progress=False, accept_changes=True
        )
    assert (tmp_path / "stages" / "01-acting" / "outcome.json").stat().st_mtime_ns == first


def test_with_a_budget_every_failing_stage_is_rolled_back_and_the_next_applied(tmp_path: Path) -> None:
    """The steps say that the stages did not stand and why; what comes after them is applied to the model before."""
    failing: list[tuple[Callable[..., Any], str]] = [
        (raising(ValueError("7 is no width")), "ValueError: 7 is no width"),
        (break_layer, "it arose in '0' (Scaled), "),
        (raising(MemoryError()), "smaller batches"),
        (lambda *_: None, "apply must give the model to go on with, got NoneType"),
        (lambda *_: nn.Linear(5, 4), "mat1 and mat2 shapes cannot be multiplied"),
    ]
    stages = [Acting(action=action) for action in [*(action for action, _ in failing), kept]]
    budget = Budget(max_drop=None, not_slower=False)
    result = Pipeline(stages, budget=budget).run(small_workload(), out=tmp_path, progress=False)
    *failed, last = result.report.steps[1:]
    assert [step.kept for step in failed] == [False] * len(failing)
    assert all(step.reason.startswith("could not be applied: ") for step in failed)
    assert [told in step.reason for step, (_, told) in zip(failed, failing, strict=True)] == [True] * len(failing)
    assert last.measurement is not None
    saved = json.loads((tmp_path / "report.json").read_text())
    assert [step["reason"] for step in saved["steps"][1:]] == [step.reason for step in result.report.steps[1:]]


def a_run(monkeypatch: pytest.MonkeyPatch, *stages: Acting) -> running.Run:
    """A run under a budget in which every stage is applied without work."""
    monkeypatch.setattr(running, "applied", lambda _job, index, *_, **__: f"state {index}")
    monkeypatch.setattr(
        running.Run, "_step", lambda *_: Step(stage="acting", parameters={}, kept=True, reason="", seconds=0.0)
    )
    job = SimpleNamespace(say=lambda _: None, scores=None)
    made = running.Run(job=job, stages=stages, budget=Budget(), reference="start", trainable="start")  # type: ignore[arg-type]
    made.steps.append(Step(stage="reference", parameters={}, kept=True, reason="", seconds=0.0))
    return made


def test_a_metric_that_fails_while_a_stage_is_scored_rolls_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric that is undefined for what a stage made is that stage's failure, not the run's."""
    made = a_run(monkeypatch, Acting(action=kept))
    monkeypatch.setattr(running.Run, "_step", raising(ZeroDivisionError("no positive sample")))
    assert made._segment([0], "start") == "start"  # type: ignore[arg-type, comparison-overlap]
    assert not made.steps[1].kept
    assert "ZeroDivisionError: no positive sample" in made.steps[1].reason


def test_a_segment_that_cannot_be_judged_is_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not known to be good does not ship; the reason stands in each of its steps."""
    made = a_run(monkeypatch, Acting(action=kept), Acting(action=kept))
    monkeypatch.setattr(running, "judge_segment", raising(IndexError("no such row")))
    assert made._segment([0, 1], "start") == "start"  # type: ignore[arg-type, comparison-overlap]
    assert [step.kept for step in made.steps] == [True, False, False]
    assert made.steps[2].reason.startswith("rolled back: could not be judged: IndexError: no such row")


@pytest.mark.parametrize("error", [WriteError("the disk is full"), RunFolderError("its files are not as written")])
def test_a_folder_that_fails_is_no_stages_fault(error: CompressorError, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk ends the run even under a budget: every later stage would be rolled back for it."""
    made = a_run(monkeypatch, Acting(action=kept))
    error.stage = "acting"
    monkeypatch.setattr(running, "applied", raising(error))
    with pytest.raises(type(error)):
        made._segment([0], "start")  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", [None, Budget(max_drop=0.9)])
def test_a_stage_that_writes_into_the_reference_is_refused_and_the_reference_as_it_was(
    tmp_path: Path, budget: Budget | None
) -> None:
    """Every number is compared with the reference: a stage that changes it would be judged by what it made of it."""
    workload = small_workload()
    before = {name: value.clone() for name, value in workload.model.state_dict().items()}

    def overwrite(model: nn.Module, workload: Workload) -> nn.Module:
        with torch.no_grad():
            workload.model[2].weight.zero_()
        return model

    pipeline = Pipeline([Acting(action=overwrite)], budget=budget)
    if budget is None:
        with pytest.raises(StageError, match=r"it writes into workload.model, .*\(2.weight\)"):
            pipeline.run(workload, out=tmp_path, progress=False)
    else:
        result = pipeline.run(workload, out=tmp_path, progress=False)
        assert not result.report.steps[1].kept
        assert "it writes into workload.model" in result.report.steps[1].reason
    assert all(torch.equal(value, before[name]) for name, value in workload.model.state_dict().items())


def test_extra_state_of_the_reference_is_put_back_too(tmp_path: Path) -> None:
    """What the reference keeps beside its tensors belongs to what is compared with."""
    workload = small_workload()
    workload.model.append(Noted())

    def note(model: nn.Module, workload: Workload) -> nn.Module:
        workload.model[3].state["seen"].append(2)
        return model

    with pytest.raises(StageError, match=r"it writes into workload.model, .*\(3._extra_state"):
        Pipeline([Acting(action=note)]).run(workload, out=tmp_path, progress=False)
    assert workload.model[3].state == {"seen": [1]}


class Noted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.state = {"seen": [1]}

    def forward(self, x: Tensor) -> Tensor:
        return x

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state
