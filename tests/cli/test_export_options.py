"""`--free-sizes` and `--export-seconds` reach the workload, and what is odd about them is wrong use."""

import sys
from pathlib import Path

import pytest

from compressor.cli.options import parsed_free_sizes, workload_of
from compressor.errors import WrongUseError

MODULE = """
import torch
from compressor import Workload
from compressor.metrics import Metric

def make():
    x = {"ids": torch.ones(4, 6), "rows": torch.randn(4, 7, 5)}
    data = [(x, torch.arange(4))]
    return Workload(name="own", model=torch.nn.Linear(1, 1), example_inputs=x, train=data, calibration=data,
                    validation=data, test=data, loss=torch.nn.functional.cross_entropy, metric=Metric.accuracy(),
                    export_seconds=7.0)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_export_options.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_export_options", raising=False)
    return "own_export_options:make"


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (["all"], "all"),
        (["batch"], "batch"),
        (["rows=1"], {"rows": (1,)}),
        (["rows=1,-1", "ids=1"], {"rows": (1, -1), "ids": (1,)}),
        (["rows=0", "rows=1"], {"rows": (0, 1)}),
        (["a=b=1"], {"a=b": (1,)}),
    ],
)
def test_choices_are_read(values: list[str], found: object) -> None:
    """A word, or dimensions by input; the name of an input may hold anything."""
    assert parsed_free_sizes(values) == found


@pytest.mark.parametrize("values", [["some"], ["rows"], ["rows="], ["=1"], ["rows=x"], ["all", "rows=1"], [""]])
def test_odd_choices_are_wrong_use(values: list[str]) -> None:
    """The sentence shows how it is done."""
    with pytest.raises(WrongUseError, match="all, batch, or NAME=DIMS"):
        parsed_free_sizes(values)


def test_a_workload_of_ones_own_takes_them(own: str) -> None:
    """What is not said on the command line stays as the workload has it."""
    assert (workload_of(own).free_sizes, workload_of(own).export_seconds) == ("all", 7.0)
    chosen = workload_of(own, free_sizes=["ids=1"], export_seconds=3.0)
    assert (chosen.free_sizes, chosen.export_seconds) == ({"ids": (1,)}, 3.0)
    with pytest.raises(WrongUseError, match="names the input 'input', and the inputs are ids, rows"):
        workload_of(own, free_sizes=["input=1"])
    with pytest.raises(WrongUseError, match="export_seconds is the CPU time"):
        workload_of(own, export_seconds=0.0)


def test_a_file_has_the_sizes_that_it_has(tmp_path: Path) -> None:
    """Nothing of an ONNX file is exported, so that nothing could be left free."""
    import numpy as np
    import torch

    from compressor.files.export import export_onnx
    from compressor.workload import Workload
    from workbench.same_data import same_data

    model, x = torch.nn.Linear(4, 3), torch.randn(6, 4)
    workload: Workload = same_data(model, [(x, torch.arange(6) % 3)], x)
    (tmp_path / "model.onnx").write_bytes(export_onnx(model, workload).onnx_bytes)
    np.savez(tmp_path / "data.npz", inputs=np.zeros((40, 4), np.float32), targets=np.arange(40) % 3)
    with pytest.raises(WrongUseError, match="is an ONNX file already"):
        workload_of(f"{tmp_path / 'model.onnx'}:{tmp_path / 'data.npz'}", free_sizes=["batch"])
