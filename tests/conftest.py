"""What every test shares."""

from workbench.fixtures import (  # noqa: F401 - pytest finds fixtures by their names here
    _opened_here,
    _own_cache,
    _resampled_briefly,
    _seeded,
    _timed_briefly,
    _trained_model,
    _written_once,
    chromium,
    own_seconds,
    resampled_in_full,
    tiny_cnn,
    tiny_workload,
    told_damage,
    trained_workload,
)
