"""What the tests of files share: exporters are what is tested here, and are called every time."""

import pytest

from compressor.files import export, exporters


@pytest.fixture(autouse=True)
def _written_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "write", exporters.write)
