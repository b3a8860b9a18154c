"""What every test of a benchmark shares."""

import pytest

from compressor.workloads.residual import ResNet
from workbench.fixtures import (  # noqa: F401 - pytest finds fixtures by their names here
    _opened_here,
    _own_cache,
    _resampled_briefly,
    _seeded,
    _timed_briefly,
    _trained_model,
    _written_once,
    tiny_cnn,
    tiny_workload,
    trained_workload,
)
from workbench.tiny import make_workload


@pytest.fixture
def small_workload():
    """Two droppable blocks: exporting takes a while for every operator."""
    return make_workload(ResNet(blocks=[2], widths=[16], classes=4).eval(), train=64, test=32)


@pytest.fixture
def time_briefly(monkeypatch):
    """Makes a benchmark's module time files for a moment, whatever it asks for."""

    def patch(module):
        timing = module.time_interleaved

        def brief(*arguments, **options):
            return timing(*arguments, **{**options, "seconds": 0.1, "repeats": 3})

        monkeypatch.setattr(module, "time_interleaved", brief)

    return patch
