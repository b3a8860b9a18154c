"""What every test shares."""

from workbench.fixtures import (  # noqa: F401 - pytest finds fixtures by their names here
    _own_cache,
    _seeded,
    _timed_briefly,
    _trained_model,
    chromium,
    own_seconds,
    tiny_cnn,
    tiny_workload,
    told_damage,
    trained_workload,
)
