import subprocess
import sys
from importlib import import_module

import pytest

import compressor
from compressor import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BaseException)]


def test_every_error_is_one_of_the_packages() -> None:
    """`except CompressorError` catches all that the package explains itself."""
    assert len(KINDS) >= 8
    assert all(issubclass(kind, errors.CompressorError) for kind in KINDS)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.RecipeError, ValueError),
        (errors.WorkloadError, ValueError),
        (errors.BudgetError, ValueError),
        (errors.OnnxFileError, ValueError),
        (errors.StorageError, ValueError),
        (errors.StageError, RuntimeError),
        (errors.ExportError, RuntimeError),
        (errors.RunFolderError, RuntimeError),
        (errors.ContractError, AssertionError),
    ],
)
def test_errors_are_what_python_calls_their_like(kind: type[Exception], builtin: type[Exception]) -> None:
    """Code that catches ValueError or RuntimeError, as it did before there was a common base, still catches them."""
    assert issubclass(kind, builtin)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("stage", "StageError"),
        ("testing", "ContractError"),
        ("files.export", "ExportError"),
        ("recipe.recipe", "RecipeError"),
        ("running.preflight", "WorkloadError"),
        ("running.folder", "RunFolderError"),
    ],
)
def test_errors_can_be_had_where_they_were(place: str, name: str) -> None:
    """Stages and scripts that import an error from the module that raises it get the same class."""
    assert getattr(import_module(f"compressor.{place}"), name) is getattr(errors, name)


def test_the_package_hands_on_the_errors_of_a_run() -> None:
    """`from compressor import RecipeError` needs no knowledge of modules."""
    names = [name for name in compressor.__all__ if name.endswith("Error")]
    assert {"CompressorError", "RecipeError", "StageError", "WorkloadError"} <= {*names}
    for name in names:
        assert getattr(compressor, name) is getattr(errors, name)


def test_errors_load_nothing_heavy() -> None:
    """An `except` clause costs no import of torch: the command line tells errors apart before it has loaded it."""
    code = "import sys; from compressor import StageError; print(sorted({'torch', 'onnx', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_fails_for_one_reason_is_told_together() -> None:
    """Once for each reason, in the order in which they were met."""
    tried = [("Dynamic()", "quantized already"), ("Float16()", "too large"), ("WeightOnly()", "quantized already")]
    assert errors.reasons_of(tried) == "Dynamic(), WeightOnly(): quantized already; Float16(): too large"
    assert errors.reasons_of([]) == ""
