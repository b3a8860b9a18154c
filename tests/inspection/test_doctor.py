"""What the doctor finds, and how it words it."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from compressor.cli.app import app
from compressor.inspection import doctor
from compressor.inspection.doctor import (
    Diagnosis,
    Finding,
    Grade,
    check_bfloat16,
    check_disk,
    check_int8,
    check_load,
    check_packages,
    diagnose,
    probe_int8,
)
from compressor.target import Isa


def test_this_machine_is_healthy() -> None:
    """Where the tests run everything needed is there, and the environment is the one that reports record."""
    diagnosis = diagnose()
    assert diagnosis.healthy, diagnosis.findings
    topics = [finding.topic for finding in diagnosis.findings]
    assert topics == ["packages", "cpu", "load", "int8", "training", "stages", "disk"]
    assert diagnosis.environment["versions"]["torch"]
    assert json.loads(json.dumps(diagnosis.to_json()))["healthy"] is True


@pytest.mark.parametrize(
    ("requirement", "says"),
    [
        ("no-such-package>=1", 'not installed; pip install "no-such-package>=1"'),
        ("pydantic>=99", 'is installed, >=99 is needed; pip install "pydantic>=99"'),
        ("pydantic>=2,<2.1", 'is installed, <2.1 is needed; pip install "pydantic>=2,<2.1"'),
    ],
)
def test_packages_that_do_not_fit(requirement: str, says: str) -> None:
    """A missing or misfitting package is named with the command that mends it."""
    (finding,) = check_packages([requirement, "typer>=0.1"])
    assert finding.grade is Grade.BAD
    assert finding.says.endswith(says)


def test_versions_are_compared_as_numbers(monkeypatch) -> None:
    """2.13 is newer than 2.9, 2 is 2.0, and what follows a plus sign does not count."""
    monkeypatch.setattr(doctor, "import_module", lambda name: None)
    for installed, requirement in (("2.13.0+cpu", "torch>=2.9"), ("2", "torch>=2.0"), ("1.6.1", "torch>=1.6,<2")):
        monkeypatch.setattr(doctor, "version", lambda name, installed=installed: installed)
        assert check_packages([requirement])[0].grade is Grade.GOOD


def test_a_package_that_cannot_be_imported(monkeypatch) -> None:
    """A package that is installed but broken is told with its error."""

    def broken(name: str) -> None:
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor, "import_module", broken)
    (finding,) = check_packages(["typer>=0.1"])
    assert finding.grade is Grade.BAD
    assert "cannot be imported (OSError: libgomp.so.1" in finding.says


@pytest.mark.parametrize(
    ("isa", "probe", "grade", "says"),
    [
        (Isa.X86_VNNI, (True, 4.0), Grade.GOOD, "is fast (VNNI); tried: exact; a matrix product takes 0.25"),
        (Isa.X86_AVX2, (False, 2.0), Grade.NOTE, "sums saturate at 16 bits, so Quantize takes"),
        (Isa.ARM_DOT, (True, 2.0), Grade.GOOD, "s8s8 static QDQ is fast (dot-product instructions)"),
        (Isa.GENERIC, (True, 0.5), Grade.NOTE, "expect smaller files, not faster ones"),
        (Isa.X86_VNNI, None, Grade.BAD, "could not run a product of 8-bit matrices"),
    ],
)  # fmt: skip
def test_words_on_int8(isa: Isa, probe: tuple[bool, float] | None, grade: Grade, says: str) -> None:
    """What 8 bits do is told for each kind of CPU, with what was tried."""
    finding = check_int8(isa, probe)
    assert finding.grade is grade
    assert says in finding.says


def test_the_probe_multiplies() -> None:
    """The probe runs both products here and gives a positive ratio."""
    exact, speedup = probe_int8()
    assert isinstance(exact, bool)
    assert speedup > 0


def test_words_on_bfloat16() -> None:
    """AMX comes before AVX512-BF16; without either, training is in float32."""
    assert check_bfloat16(frozenset({"amx_bf16", "avx512_bf16"})).says == "bfloat16: yes (AMX)"
    assert check_bfloat16(frozenset({"avx512_bf16"})).says == "bfloat16: yes (AVX512-BF16)"
    assert check_bfloat16(frozenset({"avx2"})).grade is Grade.NOTE


def test_words_on_load(monkeypatch) -> None:
    """A load above the number of cores is a note that times will be rough."""
    monkeypatch.setattr(doctor, "core_count", lambda: 2)
    monkeypatch.setattr(doctor, "load_average", lambda: (3.0, 0.0, 0.0))
    assert check_load()[0].says.startswith("3.0 on 2 cores: busy")
    monkeypatch.setattr(doctor, "load_average", lambda: (0.5, 0.0, 0.0))
    assert check_load()[0].grade is Grade.GOOD
    monkeypatch.setattr(doctor, "load_average", lambda: None)
    assert check_load()[0].says == "2 cores; this system tells no load"


def test_words_on_disk(monkeypatch, tmp_path: Path) -> None:
    """Little space is a note with what is left."""
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1024**3))
    assert check_disk(tmp_path).says == "1.0 GiB free here: little for snapshots of larger models"


SICK = Diagnosis(environment={}, findings=(Finding(topic="torch", grade=Grade.BAD, says="not installed [any]"),))


def test_printing_and_exit_code(monkeypatch) -> None:
    """What is missing is printed as such, as text or as JSON, and exits with 1."""
    console = Console(width=100, record=True, file=sys.__stderr__, quiet=False)
    with console.capture() as captured:
        SICK.print(console)
    assert "MISSING" in captured.get()
    assert "not installed [any]" in captured.get()
    monkeypatch.setattr(doctor, "diagnose", lambda: SICK)
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 1
    shown = CliRunner().invoke(app, ["doctor", "--json"])
    assert shown.exit_code == 1
    assert json.loads(shown.stdout)["findings"] == [{"topic": "torch", "grade": "bad", "says": "not installed [any]"}]
