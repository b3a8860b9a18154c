"""A state of a model is exported once in a run, and what is not the very same state is exported anew."""

import copy
import shutil
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from compressor import Effect, Pipeline
from compressor.files import export, exporters
from compressor.files.export import export_onnx
from compressor.files.export_memory import Exported, ExportMemory
from compressor.files.exporters import Written
from compressor.files.verification import ExportTask
from compressor.identity.workload import content
from compressor.stages import PruneChannels, Quantize
from workbench.same_data import same_data
from workbench.tiny import make_workload


class Net(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.body = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.body(x).mean(1)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The exporters that were asked, by TorchScript's, which is the quicker one."""
    asked: list[str] = []

    def write(exporter: Any, task: ExportTask, *_: Any, **__: Any) -> Written:
        asked.append(exporter)
        return Written(onnx_bytes=exporters._torchscript(task, on_values=False).SerializeToString(deterministic=True))

    monkeypatch.setattr(export, "write", write)
    return asked


def memory_of(model: nn.Module) -> ExportMemory:
    x = torch.randn(4, 7, 5)
    return ExportMemory(workload=same_data(model, [(x, torch.arange(4) % 3)], x), identify=content)


def double(model: Any) -> None:
    with torch.no_grad():
        model.body[2].weight.mul_(2)


def rescale(model: Any) -> None:
    model.scale = 2.0


def another_layer(model: Any) -> None:
    model.body[1] = nn.Tanh()


def hooked(model: Any) -> None:
    model.body[0].register_forward_hook(lambda _module, _inputs, output: output + 1)


def other_forward(model: Any) -> None:
    model.forward = MethodType(lambda self, x: self.body(x).sum(1), model)


def test_the_same_state_is_exported_once(written: list[str]) -> None:
    """Copies of a model, and a model that was changed back, are the same state."""
    memory = memory_of(Net())
    model = memory.workload.model
    first = export_onnx(model, memory.workload, memory=memory)
    assert export_onnx(copy.deepcopy(model), memory.workload, memory=memory) is first
    model.scale = 2.0
    changed = export_onnx(model, memory.workload, memory=memory)
    assert changed.onnx_bytes != first.onnx_bytes
    model.scale = 1.0
    assert export_onnx(model, memory.workload, memory=memory) is first
    assert len(written) == 2
    assert export_onnx(model, memory.workload).onnx_bytes == first.onnx_bytes
    assert len(written) == 3


@pytest.mark.parametrize("change", [double, rescale, another_layer, hooked, other_forward])
def test_whatever_changes_what_a_model_computes_is_another_state(written: list[str], change: Any) -> None:
    """Weights, attributes, layers, hooks and methods: a file can never be an older state's."""
    memory = memory_of(Net())
    first = export_onnx(memory.workload.model, memory.workload, memory=memory)
    model = copy.deepcopy(memory.workload.model)
    change(model)
    assert export_onnx(model, memory.workload, memory=memory).onnx_bytes != first.onnx_bytes
    assert len(written) == 2


@pytest.mark.parametrize(
    "setting", [{"free_sizes": "batch"}, {"calibration": []}, {"example_inputs": torch.ones(3, 4, 5)}]
)
def test_files_of_other_workloads_are_not_given_out(setting: Any) -> None:
    """What else decides a file, and what it was verified on, is that of the run."""
    memory = memory_of(Net())
    assert memory.serves(memory.workload)
    assert memory.serves(replace(memory.workload, train=[], name="other"))
    assert not memory.serves(replace(memory.workload, **setting))


def test_what_cannot_be_known_is_exported_every_time(written: list[str]) -> None:
    """A model that holds something that cannot be looked into has no digest."""
    memory = memory_of(Net())
    memory.identify = lambda _: None
    for _ in range(2):
        export_onnx(memory.workload.model, memory.workload, memory=memory)
    assert len(written) == 2


def test_few_files_are_kept() -> None:
    """The oldest goes first; what was used lately stays."""
    memory = memory_of(Net())
    memory.identify = lambda model: str(model.scale)  # type: ignore[union-attr]
    for number in range(4):
        memory.keep(str(float(number)), Exported(onnx_bytes=b"", exporter="dynamo", opset=20, notes=(str(number),)))
    assert memory.find(Net(0.0))[1] is not None
    memory.keep("4.0", Exported(onnx_bytes=b"", exporter="dynamo", opset=20, notes=()))
    assert [memory.find(Net(float(number)))[1] is not None for number in range(5)] == [True, False, True, True, True]


def test_a_run_does_not_try_to_the_same_end_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once free sizes took too long for one state, later ones get fixed sizes at once, with the same note."""
    tried: list[bool] = []

    def exporter(task: ExportTask, *, direct: bool) -> Any:
        while any(axes - {0} for axes in task.free):
            pass
        return exporters._torchscript(task, on_values=False), direct

    def write(exporter: Any, task: ExportTask, *rest: Any, **settings: Any) -> Written:
        tried.append(any(axes - {0} for axes in task.free))
        return exporters.write(exporter, task, *rest, **settings)

    monkeypatch.setattr(exporters, "_dynamo", exporter)
    monkeypatch.setattr(export, "write", write)
    memory = memory_of(Net())
    memory.workload = replace(memory.workload, export_seconds=0.3)
    first = export_onnx(Net(), memory.workload, memory=memory)
    second = export_onnx(Net(2.0), memory.workload, memory=memory)
    assert tried == [True, False, False]
    assert memory.ended == "0.3 s of CPU time"
    assert first.notes == second.notes
    assert "with free sizes the exporter had not finished after 0.3 s" in first.notes[-1]


@dataclass(frozen=True, kw_only=True)
class Leave:
    """Changes nothing."""

    effect: ClassVar[Effect] = Effect.VALUES

    def apply(self, model: nn.Module, workload: Any, context: Any) -> nn.Module:
        return model


def test_a_run_exports_each_state_once(written: list[str], tmp_path: Any, tiny_cnn: type[nn.Module]) -> None:
    """The reference, and what pruning makes of it; quantization begins with that file, from disk as well."""
    workload = make_workload(tiny_cnn().eval(), train=32, test=16, batch_size=16)
    stages = [PruneChannels(remove=0.25, align=1), Leave(), Quantize()]
    result = Pipeline(stages).run(workload, out=tmp_path / "run", progress=False)
    assert len(written) == 2
    quantized = (tmp_path / "run/model.onnx").read_bytes()
    shutil.rmtree(tmp_path / "run/stages/03-quantize")
    again = Pipeline(stages).run(workload, out=tmp_path / "run", progress=False)
    assert len(written) == 2
    assert (tmp_path / "run/model.onnx").read_bytes() == quantized
    assert again.report.steps[1].details["export"] == result.report.steps[1].details["export"]
