"""What follows from the class of the CPU that a model is for."""

import pytest

from compressor.target import Isa, filled_width


@pytest.mark.parametrize(
    ("width", "filled_up"), [(1, 4), (3, 4), (4, 4), (5, 16), (8, 16), (9, 16), (12, 16), (16, 16), (17, 20), (24, 24)]
)
def test_widths_are_filled_up_to_fours_and_to_sixteen(width: int, filled_up: int) -> None:
    """Multiples of four stay, and between 4 and 16 channels become 16; on AVX2, where that costs, from 9 on."""
    assert filled_width(width, Isa.X86_VNNI) == filled_width(width, Isa.X86_AVX512) == filled_up
    assert filled_width(width, Isa.X86_AVX2) == (8 if 4 < width <= 8 else filled_up)
