"""What the tests of stages share: a network in which each finds something to do, as small as that can be."""

import pytest

from compressor.workload import Workload
from compressor.workloads.residual import ResNet
from workbench.tiny import make_workload


@pytest.fixture
def small_workload() -> Workload:
    """Three residual blocks, two of which can go: for checks that apply a stage twice and export what comes of it."""
    return make_workload(ResNet(blocks=[1, 2], widths=[16, 32], classes=4).eval(), train=128)
