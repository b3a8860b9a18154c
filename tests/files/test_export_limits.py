"""Export always returns: what takes without end gets fixed sizes, and people choose which sizes are free."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from compressor.errors import ExportError, WorkloadError
from compressor.files import exporters
from compressor.files.child_process import can_fork
from compressor.files.export import export_onnx
from compressor.files.verification import ExportTask
from compressor.runtime import open_session
from compressor.workload import Workload
from workbench.same_data import same_data
from workbench.window_networks import GridNetwork, PatchNetwork, WindowNetwork


def workload_of(model: nn.Module, *shape: int, **settings: Any) -> Workload:
    data = [(torch.randn(6, *shape), torch.arange(6) % 2), (torch.randn(4, *shape), torch.arange(4) % 2)]
    return replace(same_data(model, data, data[0][0][:2]), **settings)


class Mean(nn.Module):
    """Takes (batch, any length, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean(1))


class Pair(nn.Module):
    """Takes ids and a mask of the same length, and rows of any other."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(10, 4), nn.Linear(5, 4)

    def forward(self, ids: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        return (self.embedding(ids) * mask[..., None]).mean(1) + self.linear(rows).mean(1)


def pair_workload(**settings: Any) -> Workload:
    example = {"ids": torch.randint(0, 10, (4, 6)), "mask": torch.ones(4, 6), "rows": torch.randn(4, 7, 5)}
    return replace(same_data(Pair(), [(example, torch.arange(4))], example), **settings)


def dims(onnx_bytes: bytes) -> dict[str, list[str | int]]:
    graph = onnx.load_from_string(onnx_bytes).graph
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in graph.input
    }


def replace_exporter(
    monkeypatch: pytest.MonkeyPatch, name: str, instead: Callable[[ExportTask], None], *, always: bool = False
) -> None:
    """Calls `instead` before the exporter does its work on a task of free sizes, or on any."""
    right = getattr(exporters, name)

    def exporter(task: ExportTask, **settings: Any) -> onnx.ModelProto:
        if always or any(axes - {0} for axes in task.free):
            instead(task)
        return right(task, **settings)

    monkeypatch.setattr(exporters, name, exporter)


def spin(_: ExportTask) -> None:
    while True:
        pass


def test_an_exporter_that_does_not_end_is_ended_and_sizes_are_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file takes any batch and the example's length, and the notes say what happened and what can be done."""
    replace_exporter(monkeypatch, "_dynamo", spin)
    exported = export_onnx(Mean(), workload_of(Mean(), 7, 5, export_seconds=0.4))
    assert exported.exporter == "dynamo"
    assert dims(exported.onnx_bytes) == {"input": ["batch", 7, 5]}
    assert exported.notes == (
        "dimension 1 of 'input' is fixed at 7, though the model takes other lengths",
        (
            "with free sizes the exporter had not finished after 0.4 s of CPU time; export_seconds gives it longer, "
            "and free_sizes says which sizes to leave free at all"
        ),
    )


def test_a_model_that_no_exporter_ends_with_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed sizes and the other exporter have their limits too; the way out is more time, not another forward."""
    replace_exporter(monkeypatch, "_dynamo", spin, always=True)
    replace_exporter(monkeypatch, "_torchscript", spin, always=True)
    with pytest.raises(
        ExportError, match=r"dynamo: .* after 0\.1 s.*with fixed sizes: .* after 0\.5 s.*torchscript: "
    ) as caught:
        export_onnx(Mean(), workload_of(Mean(), 7, 5, export_seconds=0.1))
    assert "export_seconds=" in str(caught.value)
    assert "torch.where" not in str(caught.value)


@pytest.mark.skipif(not can_fork(), reason="a crash in this process is one of this process")
def test_an_exporter_that_crashes_leaves_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in native code ends the child alone, and the note names the signal."""
    replace_exporter(monkeypatch, "_dynamo", lambda _: os.kill(os.getpid(), signal.SIGSEGV), always=True)
    exported = export_onnx(Mean(), workload_of(Mean(), 7, 5))
    assert exported.exporter == "torchscript"
    assert exported.notes == ("written by the TorchScript exporter; the current one: the process ended by SIGSEGV",)


def test_what_an_exporter_says_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours and pages of an exporter's error reach neither notes nor refusals."""

    def coloured(_: ExportTask) -> None:
        raise RuntimeError("\x1b[96mno such\x1b[0m operator.\n" + "graph\n" * 1000) from ValueError(
            "\x1b[1mwhy\x1b[0m\npage"
        )

    replace_exporter(monkeypatch, "_dynamo", coloured, always=True)
    exported = export_onnx(Mean(), workload_of(Mean(), 7, 5))
    (note,) = exported.notes
    assert note.endswith("the current one: RuntimeError: no such operator <- ValueError: why")
    replace_exporter(monkeypatch, "_torchscript", coloured, always=True)
    with pytest.raises(
        ExportError, match=r"dynamo: RuntimeError: no such operator <- ValueError: why; torchscript: Run"
    ) as caught:
        export_onnx(Mean(), workload_of(Mean(), 7, 5))
    assert "\x1b" not in str(caught.value)
    assert "graph\n" not in str(caught.value)


def test_windows_export_in_bounded_time() -> None:
    """Free height and width keep torch's exporter busy with what cuts maps into windows: they are fixed in time."""
    torch.manual_seed(0)
    model = WindowNetwork().eval()
    # With fixed sizes it has five times as long, which suffices on a busy machine, too.
    exported = export_onnx(model, workload_of(model, 3, 8, 8, export_seconds=2.0))
    assert dims(exported.onnx_bytes) == {"input": ["batch", 3, 8, 8]}
    assert "had not finished after 2 s of CPU time" in exported.notes[-1]
    compare(exported.onnx_bytes, model, torch.randn(5, 3, 8, 8))


@pytest.mark.slow
@pytest.mark.parametrize("network", [WindowNetwork, GridNetwork, PatchNetwork])
@pytest.mark.parametrize("settings", [{"export_seconds": 2.0}, {"free_sizes": "batch"}, {}])
def test_windows_grids_and_patches_export_under_every_choice(network: type[nn.Module], settings: Any) -> None:
    """With a limit, with fixed sizes by choice, and with all the time they need."""
    torch.manual_seed(0)
    model = network().eval()
    exported = export_onnx(model, workload_of(model, 3, 8, 8, **settings))
    compare(exported.onnx_bytes, model, torch.randn(5, 3, 8, 8))


def compare(onnx_bytes: bytes, model: nn.Module, x: Tensor) -> None:
    (output,) = open_session(onnx_bytes).run(["output"], {"input": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(output), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("free_sizes", "expected"),
    [
        ("all", (["batch", "ids_dim1"], ["batch", "ids_dim1"], ["batch", "rows_dim1", 5])),
        ("batch", (["batch", 6], ["batch", 6], ["batch", 7, 5])),
        ({}, (["batch", 6], ["batch", 6], ["batch", 7, 5])),
        ({"rows": (-2,)}, (["batch", 6], ["batch", 6], ["batch", "rows_dim1", 5])),
        ({"ids": (0, 1), "mask": [1]}, (["batch", "ids_dim1"], ["batch", "ids_dim1"], ["batch", 7, 5])),
    ],
)
def test_what_stays_free_can_be_chosen(free_sizes: Any, expected: tuple[list[str | int], ...]) -> None:
    """The batch always is; what is fixed by choice is no note."""
    workload = pair_workload(free_sizes=free_sizes)
    exported = export_onnx(workload.model, workload)
    assert dims(exported.onnx_bytes) == dict(zip(("ids", "mask", "rows"), expected, strict=True))
    assert exported.notes == ()


@pytest.mark.parametrize(
    ("free_sizes", "match"),
    [
        (
            {"rows": (2,)},
            r"dimension 2 of 'rows'.*Pair takes no other size there than the example's 5; for 4 it raised",
        ),
        ({"ids": (1,)}, r"dimension 1 of 'ids'.*name the dimensions of the other inputs that vary with it"),
    ],
)
def test_a_size_that_the_model_does_not_let_vary_is_refused(free_sizes: Any, match: str) -> None:
    """Who names a dimension is told where it cannot be had, before anything is exported."""
    workload = pair_workload(free_sizes=free_sizes)
    with pytest.raises(ExportError, match=match):
        export_onnx(workload.model, workload)


@pytest.mark.parametrize(
    ("free_sizes", "match"),
    [
        ("Batch", r'"all", "batch", or dimensions by input.*got \'Batch\''),
        (("rows",), r"got \('rows',\)"),
        ({"row": (1,)}, r"names the input 'row', and the inputs are ids, mask, rows"),
        ({"rows": 1}, r"from 0 \(the batch\) to 2 for 'rows'.*\(4, 7, 5\); got 1"),
        ({"rows": "1"}, r"got '1'"),
        ({"rows": (1, 3)}, r"got \(1, 3\)"),
        ({"rows": (-4,)}, r"got \(-4,\)"),
        ({"rows": (True,)}, r"got \(True,\)"),
    ],
)
def test_odd_choices_are_refused_where_they_are_made(free_sizes: Any, match: str) -> None:
    """Before any work, with the shape of the example."""
    with pytest.raises(WorkloadError, match=match):
        pair_workload(free_sizes=free_sizes)


def test_a_size_that_the_example_cannot_show_is_refused() -> None:
    """Exporters take sizes of 1 and 2 for constants: another example is the way out."""
    with pytest.raises(
        WorkloadError, match=r"dimension 1 of 'input' free, and the example \(2, 2, 5\) has a size below 3"
    ):
        workload_of(Mean(), 2, 5, free_sizes={"input": (1,)})


@pytest.mark.parametrize("seconds", [0, -1.0, float("inf"), float("nan"), True])
def test_the_limit_is_a_time(seconds: float) -> None:
    """Above 0 and finite."""
    with pytest.raises(ValueError, match=r"export_seconds is the CPU time that one export may take, above 0; got"):
        workload_of(Mean(), 7, 5, export_seconds=seconds)


def test_random_numbers_are_left_as_they_were() -> None:
    """A loader draws from torch's generator at every pass: an export more or less must change nothing after it."""
    dataset = torch.utils.data.TensorDataset(torch.randn(8, 7, 5), torch.arange(8) % 3)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=True)
    workload = replace(workload_of(Mean(), 7, 5, free_sizes="batch"), calibration=loader)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    export_onnx(workload.model, workload)
    assert torch.equal(torch.get_rng_state(), before)
