"""The channels that a convolution of 8-bit integers gets in a file: what ONNX Runtime's fast kernels take.

Its kernels for x86 (MLAS, `MlasConvSym`) read input channels in fours and write at least 16 output channels, a multiple
of four of them. A convolution of any other width is unfolded into a matrix first, which costs 1.1 to 1.9 times as much
on each class of x86 CPU: 3 colours into 16 channels of 32x32 take 1.6 times as long as 4 into 16.
"""

from compressor.target import Isa

FEWEST_OUTPUTS = 16
# Up to so many output channels stay with the matrix product. On 16x16 maps residual layers of 8 channels take 0.80 of
# the time as 16 with VNNI on AVX-512, 0.87 with AVX-VNNI, 0.98 on AVX-512 without and 1.12 on AVX2 without; layers of 4
# channels 0.97, 1.04, 1.24 and 1.40 (benchmarks/filled_widths.py).
_NARROW, _NARROW_AVX2 = 4, 8


def in_fours(width: int) -> int:
    """The next multiple of four."""
    return -(-width // 4) * 4


def filled_width(width: int, isa: Isa) -> int:
    """The channels that a tensor of `width` channels gets between integer convolutions: a multiple of four."""
    narrow = _NARROW if isa in {Isa.X86_VNNI, Isa.X86_AVX512} else _NARROW_AVX2
    return in_fours(width) if width <= narrow else max(in_fours(width), FEWEST_OUTPUTS)
