"""What the tests of files share: exporters are what is tested here, and are called every time."""

import pytest


@pytest.fixture
def _written_once() -> None:
    pass
