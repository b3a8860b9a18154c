"""Quantization arithmetic."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.quantization.grids.schemes import (
    Asymmetric,
    PerTensor,
    Symmetric,
    choose_affine,
    dequantize,
    extremes,
    quantize,
)

finite = st.floats(min_value=-1e6, max_value=1e6, width=32)


def _affine(low: float, high: float, scheme: Symmetric | Asymmetric, *, signed: bool) -> tuple[float, int]:
    scale, zero_point = choose_affine(torch.tensor(low), torch.tensor(high), scheme, signed=signed)
    return float(scale), int(zero_point)


def test_asymmetric_range_of_positive_values_starts_at_zero() -> None:
    """A tensor of only positive values still gets a range from 0: [2, 4] takes 255 steps of 4 / 255."""
    scale, zero_point = _affine(2.0, 4.0, Asymmetric(), signed=False)
    assert zero_point == 0
    assert scale == pytest.approx(4 / 255)


def test_asymmetric_range_of_negative_values_ends_at_zero() -> None:
    """A tensor of only negative values gets the largest integer as its zero."""
    scale, zero_point = _affine(-5.1, -1.0, Asymmetric(), signed=False)
    assert zero_point == 255
    assert scale == pytest.approx(5.1 / 255)


def test_asymmetric_zero_point_by_hand() -> None:
    """[-1, 3] has scale 4 / 255, and zero lies 63.75 steps above the lowest integer: 64, or -64 for signed ones."""
    assert _affine(-1.0, 3.0, Asymmetric(), signed=False) == (pytest.approx(4 / 255), 64)
    assert _affine(-1.0, 3.0, Asymmetric(), signed=True) == (pytest.approx(4 / 255), -64)


def test_symmetric_weights_use_127_steps_on_either_side() -> None:
    """Signed symmetric integers have zero point 0 and leave -128 unused."""
    assert _affine(-2.54, 1.0, Symmetric(), signed=True) == (pytest.approx(0.02), 0)


def test_symmetric_unsigned_centres_on_128_or_starts_at_zero_after_relu() -> None:
    """Unsigned symmetric activations put zero at 128, and at 0 where nothing is negative, which wastes no step."""
    assert _affine(-1.0, 2.54, Symmetric(granularity=PerTensor()), signed=False) == (pytest.approx(0.02), 128)
    assert _affine(0.0, 2.55, Symmetric(granularity=PerTensor()), signed=False) == (pytest.approx(0.01), 0)


def test_seven_bit_weights_stay_within_63() -> None:
    """7 bits give integers in [-63, 63]: two products with 255 then fit in 16 bits (2 * 255 * 63 = 32130)."""
    values = torch.tensor([-1.0, 0.25, 1.0])
    scale, zero_point = choose_affine(*extremes(values), Symmetric(bits=7), signed=True)
    assert quantize(values, scale, zero_point, bits=7, signed=True).tolist() == [-63, 16, 63]


def test_quantize_rounds_halves_to_even_and_saturates() -> None:
    """0.5 and 1.5 steps round to 0 and 2, and values outside the range take its ends, as in ONNX."""
    got = quantize(torch.tensor([0.5, 1.5, 300.0, -7.0]), torch.tensor(1.0), torch.tensor(0), signed=False)
    assert got.tolist() == [0, 2, 255, 0]


def test_channel_of_zeros_gets_scale_one() -> None:
    """A dead channel does not divide by zero, and comes back as zeros."""
    weights = torch.tensor([[0.0, 0.0], [1.27, -0.5]])
    scale, zero_point = choose_affine(*extremes(weights, 0), Symmetric(), signed=True)
    assert scale.tolist() == pytest.approx([1.0, 0.01])
    integers = quantize(weights, scale, zero_point, signed=True, axis=0)
    assert integers.tolist() == [[0, 0], [127, -50]]
    assert dequantize(integers, scale, zero_point, axis=0)[0].tolist() == [0.0, 0.0]


def test_axis_selects_the_channels() -> None:
    """Along axis 1 the columns have their own ranges."""
    low, high = extremes(torch.tensor([[1.0, -2.0], [3.0, 5.0]]), 1)
    assert low.tolist() == [1.0, -2.0]
    assert high.tolist() == [3.0, 5.0]


@given(
    values=st.lists(finite, min_size=1, max_size=20),
    scheme=st.sampled_from([Symmetric(), Asymmetric(), Symmetric(bits=7), Asymmetric(bits=4)]),
    signed=st.booleans(),
)
def test_round_trip_errs_by_half_a_step_at_most(
    values: list[float], scheme: Symmetric | Asymmetric, *, signed: bool
) -> None:
    """Inside its own range a value comes back within scale / 2, and zero comes back exactly."""
    tensor = torch.tensor([*values, 0.0])
    scale, zero_point = choose_affine(*extremes(tensor), scheme, signed=signed)
    back = dequantize(quantize(tensor, scale, zero_point, bits=scheme.bits, signed=signed), scale, zero_point)
    # A thousandth for float32's own rounding of the scale and of the quotient.
    assert float((back - tensor).abs().max()) <= float(scale) * 0.501
    assert float(back[-1]) == 0


def test_ranges_that_are_none_are_refused() -> None:
    """NaN, infinite and reversed ranges raise, with the range in the message."""
    for low, high in ((float("nan"), 1.0), (0.0, float("inf")), (2.0, 1.0)):
        with pytest.raises(ValueError, match="finite low <= high"):
            _affine(low, high, Asymmetric(), signed=False)


def test_bits_out_of_reach_are_refused() -> None:
    """One bit cannot hold a zero and two signs."""
    with pytest.raises(ValueError, match="from 2 to 16; got 1"):
        Symmetric(bits=1)
