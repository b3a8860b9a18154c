"""The locked environment, the bill of materials and the wheel: what the package is built of, the same each time."""

import json
import os
import zipfile

import pytest

from compressor.storage import sha256
from workbench import ROOT, supply

pytest.importorskip("packaging")


def test_the_lock_has_the_pins_that_the_tests_ran_with() -> None:
    """Every pin of constraints.txt but torch's, each package once, with a hash, and no address of any registry."""
    text = supply.LOCK.read_text(encoding="utf-8")
    lines = list(supply.locked(text))
    found = {name: version for name, version, _ in lines}
    assert len(found) == len(lines)
    assert "://" not in text
    assert "index" not in text
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    )
    wanted = {supply.canonical(name): version for name, version in pins.items() if name != "torch"}
    assert {name: found.get(name) for name in wanted} == wanted
    needed = {supply.canonical(supply.name_of(line)) for line in supply.declared("dev", "bench")} - {"torch"}
    assert needed <= found.keys()


@pytest.mark.parametrize("line", ["numpy", "numpy==2.0", "numpy==2.0 --hash=md5:00", f"-i x --hash=sha256:{'0' * 64}"])
def test_a_line_without_a_hash_is_no_line_of_a_lock(line) -> None:
    """Nothing is installed that is not named by its SHA-256."""
    with pytest.raises(ValueError, match="no line of a lock"):
        list(supply.locked(line))
    good = supply.lock_of({"a-b": "1.0"}, {"a-b": "0" * 64})
    assert list(supply.locked(good)) == [("a-b", "1.0", "0" * 64)]


@pytest.mark.slow
def test_the_bill_of_materials_passes_its_schema() -> None:
    """CycloneDX 1.6, strictly; all that the package declares is among what it depends on, and is listed."""
    pytest.importorskip("cyclonedx", reason="the schema comes with it: pip install .[dev]")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    bill = supply.bill()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None
    listed = {part["bom-ref"] for part in bill["components"]}
    (own,) = bill["dependencies"]
    assert set(own["dependsOn"]) <= listed
    names = {part["name"] for part in bill["components"]}
    assert {"torch", "onnx", "onnxruntime", "numpy"} <= names
    assert "pytest" not in names


@pytest.mark.slow
def test_two_builds_give_one_wheel(tmp_path, monkeypatch) -> None:
    """At two times, under two umasks, with names in another order: the same bytes, and nothing but the package."""
    wheels = []
    for number, umask in enumerate((0o022, 0o077)):
        monkeypatch.setenv("PYTHONHASHSEED", str(number))
        before = os.umask(umask)
        try:
            wheels.append(supply.wheel(tmp_path / str(number), epoch=1_700_000_000))
        finally:
            os.umask(before)
    members = [
        [(one.filename, one.date_time, one.external_attr, one.CRC) for one in zipfile.ZipFile(wheel).infolist()]
        for wheel in wheels
    ]
    assert members[0] == members[1]
    assert sha256(wheels[0].read_bytes()) == sha256(wheels[1].read_bytes())
    names = {name for name, *_ in members[0]}
    assert {"compressor/py.typed", "compressor/recipes/int8.yaml"} <= names
    assert not any(name.split("/")[0] in {"tests", "benchmarks", "workbench"} for name in names)
