"""The channels that a convolution of 8-bit integers gets in a file: what ONNX Runtime's fast kernels take.

Its kernels for x86 (MLAS, `MlasConvSym`) read input channels in fours and write at least 16 output channels, a multiple
of four of them. A convolution of any other width is unfolded into a matrix first, which costs 1.1 to 1.9 times as much
on each class of x86 CPU: 3 colours into 16 channels of 32x32 take 1.6 times as long as 4 into 16.
"""

FEWEST_OUTPUTS = 16
# Fewer output channels stay with the matrix product: 8 filled up to 16 take 0.8 of the time on AVX-512 with VNNI, the
# same without, and 1.15 of it on AVX2.
_NARROW = 8


def in_fours(width: int) -> int:
    """The next multiple of four."""
    return -(-width // 4) * 4


def filled_width(width: int) -> int:
    """The channels that a tensor of `width` channels gets between integer convolutions: a multiple of four."""
    return in_fours(width) if width <= _NARROW else max(in_fours(width), FEWEST_OUTPUTS)
