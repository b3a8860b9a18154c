"""A file from elsewhere is opened in a process of its own: what it costs there costs nothing here."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

from compressor.errors import OnnxFileError, WorkloadError
from compressor.files import opening
from compressor.files.limits import Limits
from compressor.files.opening import open_file
from compressor.files.reading import read_onnx
from workbench.hostile_files import RELU, doubling_functions, endless, file_of, grows, summed, written


@pytest.fixture
def _opened_here() -> None:
    """Files are opened in a process of their own, which they may bring down."""


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_known", {})


@pytest.mark.parametrize("model", [endless(), doubling_functions(28)], ids=["loop", "functions"])
def test_what_never_ends_is_ended(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop without end, or functions that double: a typed error after the time that is set."""
    monkeypatch.setenv("COMPRESSOR_OPEN_SECONDS", "1")
    with pytest.raises(OnnxFileError, match=r"takes more than 1 s .*COMPRESSOR_OPEN_SECONDS to more seconds"):
        read_onnx(written(model, tmp_path))


def test_what_asks_for_too_much_memory_is_refused_and_the_limit_can_be_raised(tmp_path: Path, monkeypatch) -> None:
    """Sizes that are known only when the file runs; with more memory allowed the same file is read."""
    path = written(grows(2_000_000), tmp_path)
    monkeypatch.setenv("COMPRESSOR_OPEN_MIB", "24")
    with pytest.raises(OnnxFileError, match=r"takes more than 24 MiB .*COMPRESSOR_OPEN_MIB to more"):
        read_onnx(path)
    monkeypatch.setenv("COMPRESSOR_OPEN_MIB", "400")
    assert read_onnx(path)(torch.ones(3, 4)).tolist() == [[1.0] * 4] * 3


def test_an_example_decides_what_a_file_asks_for(tmp_path: Path) -> None:
    """What made-up inputs do not reach, the example does: 10 GB for each of its values."""
    with pytest.raises(OnnxFileError, match="takes more than 1536 MiB"):
        read_onnx(written(grows(2_500_000_000), tmp_path), example=torch.ones(1, 1, dtype=torch.float32).expand(1, 4))


@pytest.mark.parametrize("words", ["", "many", "-1", "0", "nan"])
def test_limits_of_the_environment_are_checked(words: str, tmp_path: Path, monkeypatch) -> None:
    """Nothing set means the default; what is no number above 0 is refused with the name of the variable."""
    monkeypatch.setenv("COMPRESSOR_OPEN_SECONDS", words)
    if not words:
        assert Limits.of_environment() == Limits()
        return
    with pytest.raises(WorkloadError, match="COMPRESSOR_OPEN_SECONDS is a number above 0"):
        read_onnx(written(file_of([RELU]), tmp_path))


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"brings down what reads it \(SIGSEGV\)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "takes more than 1536 MiB"),
        ("import os; os.write(2, b'std::bad_alloc'); os.abort()", "takes more than 1536 MiB"),
        ("import sys; sys.exit(3)", r"brings down what reads it \(exit code 3\)"),
        ("raise RuntimeError('of its own')", r"brings down what reads it \(RuntimeError: of its own\)"),
        ("import sys; sys.stdin.buffer.read()", r"brings down what reads it \(exit code 0\)"),
    ],
)
def test_a_process_that_dies_is_a_typed_error(source: str, told: str, tmp_path: Path, monkeypatch) -> None:
    """Whatever brings down the library that reads the file brings down nothing here."""
    monkeypatch.setattr(opening, "_START", source)
    with pytest.raises(OnnxFileError, match=told):
        open_file(written(file_of([RELU]), tmp_path), [np.zeros((600_000, 4), dtype=np.float32)])


def test_a_process_that_waits_is_ended_by_the_clock(tmp_path: Path, monkeypatch) -> None:
    """Where nothing is computed, the clock ends it."""
    monkeypatch.setattr(opening, "_START", "import time; time.sleep(60)")
    monkeypatch.setattr(opening, "_CLOCK", 1.0)
    monkeypatch.setenv("COMPRESSOR_OPEN_SECONDS", "0.2")
    with pytest.raises(OnnxFileError, match=r"takes more than 0\.2 s"):
        open_file(written(file_of([RELU]), tmp_path), None)


def test_the_same_bytes_are_opened_elsewhere_once(tmp_path: Path, monkeypatch) -> None:
    """A second reading of the file, by any name, costs no process; a changed file does."""
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **named: started.append(args) or popen(*args, **named))
    path = written(file_of([RELU]), tmp_path)
    read_onnx(path)
    path.rename(tmp_path / "renamed.onnx")
    first = read_onnx(tmp_path / "renamed.onnx", example=torch.ones(2, 4))
    assert len(started) == 1
    read_onnx(written(file_of([RELU], shape=["n", 5]), tmp_path))
    assert len(started) == 2
    assert first(-torch.ones(2, 4)).tolist() == [[0.0] * 4] * 2


def test_the_process_loads_no_torch_and_no_file_of_the_current_folder(tmp_path: Path, monkeypatch) -> None:
    """Its start is quick, and a numpy.py beside the user is not run."""
    for name in ("numpy", "onnx", "json"):
        (tmp_path / f"{name}.py").write_text("import pathlib; pathlib.Path('trace').write_text('run')")
    monkeypatch.chdir(tmp_path)
    read_onnx(written(file_of([RELU]), tmp_path))
    assert not (tmp_path / "trace").exists()
    code = "import sys, compressor.files.opening_process; print({'torch', 'scipy', 'pydantic'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    loaded = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment)
    assert loaded.stdout == "set()\n", loaded.stderr


def test_a_large_answer_and_a_large_example_pass_whole(tmp_path: Path) -> None:
    """More than a pipe holds, both ways, by name and in order."""
    weights = np.arange(400_000, dtype=np.float32).reshape(4, -1)
    model = file_of([helper.make_node("MatMul", ["x", "w"], ["y"])], [numpy_helper.from_array(weights, "w")])
    rows = torch.randn(50_000, 4)
    path = written(model, tmp_path)
    expected = rows[:3] @ torch.from_numpy(weights)
    for example in ({"x": rows}, (rows,), rows):
        opening._known.clear()
        torch.testing.assert_close(read_onnx(path, example=example)(rows[:3]), expected, rtol=1e-5, atol=0.1)


def test_libraries_that_print_disturb_nothing(tmp_path: Path, monkeypatch) -> None:
    """What is written to stdout over there is no part of the answer."""
    noisy = "import os; " + opening._START.replace("main; main()", "main; os.write(2, b'noise'); main()")
    monkeypatch.setattr(opening, "_START", noisy)
    assert read_onnx(written(summed("Relu", ["x"]), tmp_path))(torch.ones(2, 4)).item() == 8


def test_an_interrupt_ends_the_process_too(tmp_path: Path, monkeypatch) -> None:
    """Who stops waiting leaves nothing running behind."""
    started = []
    popen = subprocess.Popen

    def remembered(*args, **named):
        started.append(popen(*args, **named))
        return started[-1]

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", remembered)
    monkeypatch.setattr(opening, "_answer", interrupted)
    monkeypatch.setattr(opening, "_START", "import time; time.sleep(60)")
    with pytest.raises(KeyboardInterrupt):
        open_file(written(file_of([RELU]), tmp_path), None)
    assert started[0].returncode == -signal.SIGKILL


def test_a_limit_beyond_what_clocks_count_is_none(tmp_path: Path, monkeypatch) -> None:
    """Whoever trusts a file without measure may say so."""
    monkeypatch.setenv("COMPRESSOR_OPEN_SECONDS", "999999999")
    monkeypatch.setenv("COMPRESSOR_OPEN_MIB", "999999999")
    assert read_onnx(written(file_of([RELU]), tmp_path))(torch.ones(1, 4)).sum() == 4
