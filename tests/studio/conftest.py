"""What several tests of the studio share: a clock that is set by hand, who may come in, and a small model."""

import pytest

from compressor.target import Target


@pytest.fixture
def clock():
    pytest.importorskip("httpx")
    from workbench.visitors import Clock

    return Clock()


@pytest.fixture
def access(clock):
    from compressor.studio.access import Access

    return Access(clock=clock)


@pytest.fixture
def desk(tiny_workload, tmp_path):
    pytest.importorskip("starlette")
    from compressor.studio.desk import Desk

    return Desk(tiny_workload, "tiny", Target(), tmp_path)
