"""Every output of a model goes into its file, under its name; the judged one is known there."""

from dataclasses import dataclass
from typing import NamedTuple

import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from compressor.errors import ExportError, OnnxFileError
from compressor.files import export
from compressor.files.export import export_onnx
from compressor.files.exported_outputs import compare, named_outputs, names_of_outputs
from compressor.files.graph_cleaning import strip_
from compressor.files.graphs import parse
from compressor.files.reading import read_onnx
from compressor.runtime import OnnxModule, judged_output
from compressor.workload import Workload, output_tensor
from workbench.same_data import same_data


class Pair(NamedTuple):
    boxes: Tensor
    scores: Tensor


@dataclass
class Answer:
    features: Tensor
    logits: Tensor
    levels: list[Tensor]
    said: str = "text"


class Heads(nn.Module):
    """A trunk and heads whose outputs come in the container that `how` names."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.body, self.head, self.map = nn.Linear(12, 16), nn.Linear(16, 4), nn.Linear(16, 6)

    def forward(self, x: Tensor):
        hidden = self.body(x).relu()
        head, other = self.head(hidden), self.map(hidden)
        match self.how:
            case "tuple":
                return head, other.view(-1, 2, 3), head.argmax(1)
            case "named tuple":
                return Pair(boxes=head, scores=other)
            case "dict":
                return {"features": other, "output": head}
            case "twice":
                return {"logits": head, "last": head, "deep": {"a": hidden, "b": (other, hidden.sum(1))}}
            case _:
                return Answer(features=other, logits=head, levels=[hidden, other])


def workload_of(model: nn.Module) -> Workload:
    x = torch.randn(12, 12, generator=torch.Generator().manual_seed(1))
    return same_data(model, [(x[:6], torch.arange(6) % 4), (x[6:], torch.arange(6) % 4)], x[:2])


@pytest.mark.parametrize(
    ("how", "names", "judged"),
    [
        ("tuple", ["output", "output_1", "output_2"], "output"),
        ("named tuple", ["boxes", "scores"], "boxes"),
        ("dict", ["features", "output"], "features"),
        ("twice", ["logits", "last", "deep.a", "deep.b.0", "deep.b.1"], "logits"),
        ("dataclass", ["features", "logits", "levels.0", "levels.1"], "logits"),
    ],
)
def test_every_output_is_exported_under_its_name(how: str, names: list[str], judged: str) -> None:
    """Keys, fields and places name outputs, in the model's order; the judged one is the same for torch and the file."""
    model = Heads(how).eval()
    module = OnnxModule(export_onnx(model, workload_of(model)).onnx_bytes)
    assert [value.name for value in module.session.get_outputs()] == names
    assert judged_output(module.session) == judged
    x = torch.randn(7, 12)
    with torch.no_grad():
        torch.testing.assert_close(output_tensor(module(x)), output_tensor(model(x)), rtol=1e-4, atol=1e-5)
    # Whoever reads the file finds every output at its batch size.
    for value in module(x):
        assert len(value) == 7


def test_an_output_that_cannot_be_written_is_left_out_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no exporter writes all of them, the judged one ships alone; the notes name the others and the reason."""
    real = export.write

    def refusing(exporter, task, *args, **kwargs):
        if task.outputs.others:
            raise ExportError("no operator for this")
        return real(exporter, task, *args, **kwargs)

    monkeypatch.setattr(export, "write", refusing)
    model = Heads("tuple").eval()
    exported = export_onnx(model, workload_of(model))
    assert [value.name for value in parse(exported.onnx_bytes).graph.output] == ["output"]
    (note,) = exported.notes
    assert "'output' alone, and not 'output_1', 'output_2'" in note
    assert "no operator for this" in note


def test_names_that_inputs_have_caches_and_odd_numbers_are_left_out() -> None:
    """A file cannot have one name for an input and an output, and ONNX Runtime's numpy has no complex numbers."""
    head = torch.zeros(2, 3)
    raw = {"logits": head, "mask": head, "past_key_values": (head,), "waves": head.to(torch.complex64)}
    assert names_of_outputs(raw, named_outputs(raw), ("mask",)).names == ("logits",)
    raw = {"x": head, "y": head + 1}
    assert names_of_outputs(raw, named_outputs(raw), ("x",)).names == ("output",)


def test_an_output_with_the_same_nan_agrees_and_another_does_not() -> None:
    """A further output may hold NaN where the model's does, and nowhere else; a wrong one is named."""
    wanted = torch.tensor([1.0, float("nan"), float("-inf")])
    compare("map", wanted.clone(), wanted, "(3,)")
    with pytest.raises(ExportError, match="gives NaN or Inf in 'map' where torch does not"):
        compare("map", torch.tensor([1.0, 2.0, float("-inf")]), wanted, "(3,)")
    with pytest.raises(ExportError, match=r"differs from torch in 'map' by 0\.1"):
        compare("map", torch.tensor([1.1, 0.0]), torch.tensor([1.0, 0.0]), "(2,)")


def test_the_judged_output_of_a_file_is_named(tmp_path) -> None:
    """The one called output is judged wherever it stands; another one by its name, in every copy."""
    model = Heads("dict").eval()
    written = parse(export_onnx(model, workload_of(model)).onnx_bytes)
    strip_(written)
    onnx.save(written, str(tmp_path / "given.onnx"))
    x = torch.randn(3, 12)
    usual = read_onnx(tmp_path / "given.onnx")
    assert output_tensor(usual(x)).shape == (3, 4)
    asked = read_onnx(tmp_path / "given.onnx", judged="features")
    assert output_tensor(asked(x)).shape == (3, 6)
    again = ort.InferenceSession(asked.onnx_bytes, providers=["CPUExecutionProvider"])
    assert judged_output(again) == "features"
    with pytest.raises(OnnxFileError, match="has the outputs features, output, and none called 'feature'"):
        read_onnx(tmp_path / "given.onnx", judged="feature")


@pytest.mark.parametrize(
    ("how", "judge", "names", "judged"),
    [
        ("dict", "output", ["output", "features"], "output"),
        ("tuple", "1", ["output_1", "output", "output_2"], "output_1"),
        ("dataclass", "levels.0", ["levels.0", "features", "logits"], "levels.0"),
    ],
)
def test_a_chosen_output_keeps_its_name(how: str, judge: str, names: list[str], judged: str, tmp_path) -> None:
    """What `judge=` names is judged under its own name, in the file of a model of torch and in one from elsewhere."""
    x, targets = torch.randn(24, 12), torch.zeros(24, dtype=torch.long)
    workload = Workload.from_datasets(
        Heads(how).eval(), train=(x, targets), test=(x, targets), judge=judge, metric="accuracy", batch_size=8
    )
    file = export_onnx(workload.model, workload).onnx_bytes
    assert [value.name for value in parse(file).graph.output] == names
    assert judged_output(OnnxModule(file).session) == judged
    (tmp_path / "given.onnx").write_bytes(file)
    again = Workload.from_datasets(
        read_onnx(tmp_path / "given.onnx"), train=(x, targets), test=(x, targets), judge=names[1], batch_size=8
    )
    file = export_onnx(again.model, again).onnx_bytes
    assert judged_output(OnnxModule(file).session) == names[1]
