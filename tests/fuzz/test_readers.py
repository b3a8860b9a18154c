"""Whatever a file holds, a reader ends soon and with an error of ours, or gives what was written: `make fuzz`.

Damage is drawn by hypothesis, which shrinks what it finds; an input that was found becomes a test beside its reader.
FUZZ_EXAMPLES is how many are tried for each reader.
"""

import os
import random
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compressor.errors import CompressorError

pytest.importorskip("cryptography", reason="keys need it: pip install .[trust]")
from workbench.readers import READERS, mutant, onnx_file, prepared

pytestmark = pytest.mark.fuzz

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "500"))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return prepared(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore::UserWarning")
@given(seed=st.integers(0, 2**32), bare=st.binary(max_size=200), how=st.sampled_from(["damaged", "edited", "bare"]))
@settings(
    max_examples=EXAMPLES,
    deadline=5000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_damage_ends_in_an_error_of_ours(place, name, seed, bare, how) -> None:
    """Within five seconds; exact readers give nothing but what was written, whatever the damage."""
    reader, chance = READERS[name], random.Random(seed)  # noqa: S311 - no secret
    sample = reader.sample(place)
    raw = mutant(sample, chance, how=how, bare=bare)
    try:
        found = reader.read(raw, place)
    except CompressorError as error:
        # Colours of a terminal and pages of somebody's dump are none of what a reader says.
        if not 0 < len(str(error)) <= 9000 or "\x1b" in str(error):
            pytest.fail(f"an error without a sentence: {str(error)[:300]!r}")
        return
    assert not reader.exact or raw == sample, f"{found!r} was read of other bytes"


def test_the_samples_are_good(place) -> None:
    """Each reader reads its own, so that what is refused above is refused for its damage."""
    for reader in READERS.values():
        reader.read(reader.sample(place), place)
    assert onnx.load_from_string(onnx_file(place)).graph.initializer[0].name == "w"
