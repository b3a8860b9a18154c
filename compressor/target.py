"""Where the model will run: latency is measured there; integer types and the widths of channels follow from it."""

import platform
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from compressor.checks import check_count, explains_settings


class Isa(Enum):
    """The instruction-set classes between which ONNX Runtime's CPU kernels differ in kind."""

    X86_VNNI = "x86_vnni"  # 8-bit products accumulate in 32 bits: u8 x s8 is exact and fast
    X86_AVX512 = "x86_avx512"  # no VNNI: u8 x s8 saturates at 16 bits
    X86_AVX2 = "x86_avx2"  # the same, on narrower vectors
    ARM_DOT = "arm_dot"  # s8 x s8 is the fast path
    GENERIC = "generic"


# What multiplies bfloat16 matrices in hardware, by flag, fastest first; without one, torch emulates them: correct, but
# slower than float32.
BFLOAT16 = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "Arm BF16"}


def cpu_flags() -> frozenset[str]:
    """The instruction-set flags that the operating system reports, empty where it reports none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()


def cpu_name() -> str:
    """The processor's own name, or the architecture where it gives none."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def detect_isa() -> Isa:
    """The class of this machine's CPU."""
    flags, machine = cpu_flags(), platform.machine().lower()
    if machine in {"x86_64", "amd64"}:
        if flags & {"avx512_vnni", "avx_vnni"}:
            return Isa.X86_VNNI
        if "avx512bw" in flags:
            return Isa.X86_AVX512
        return Isa.X86_AVX2 if not flags or "avx2" in flags else Isa.GENERIC
    if machine in {"arm64", "aarch64"}:
        # Every Arm Mac has the dot-product instructions; Linux names them asimddp.
        return Isa.ARM_DOT if "asimddp" in flags or platform.system() == "Darwin" else Isa.GENERIC
    return Isa.GENERIC


@explains_settings
@dataclass(frozen=True, kw_only=True)
class Target:
    """The machine and the load that the numbers are for.

    `batch_size` samples per call (>= 1), `threads` intra-op threads of ONNX Runtime (>= 1), `isa` detected by default.
    """

    batch_size: int = 1
    threads: int = 1
    isa: Isa = field(default_factory=detect_isa)

    def __post_init__(self) -> None:
        check_count(self.batch_size, "batch_size is the number of samples per call")
        check_count(self.threads, "threads is the number of ONNX Runtime threads")

    @property
    def channel_multiple(self) -> int:
        """The width that float kernels are built for: ORT's NCHWc block is 16 floats on AVX-512, 8 elsewhere."""
        return 16 if self.isa in {Isa.X86_VNNI, Isa.X86_AVX512} else 8

    @property
    def signed_activations(self) -> bool:
        """Whether int8 activations beat uint8 ones: only on Arm; on x86 they run several times slower than float."""
        return self.isa is Isa.ARM_DOT


# ONNX Runtime's fast kernels for convolutions of 8-bit integers on x86 (MLAS, `MlasConvSym`) read input channels in
# fours and write at least 16 output channels, a multiple of four of them. A convolution of any other width is unfolded
# into a matrix first, which costs 1.1 to 1.9 times as much on each class of x86 CPU: 3 colours into 16 channels of
# 32x32 take 1.6 times as long as 4 into 16.
FEWEST_OUTPUTS = 16
# Up to so many output channels stay with the matrix product. On 16x16 maps residual layers of 8 channels take 0.80 of
# the time as 16 with VNNI on AVX-512, 0.87 with AVX-VNNI, 0.98 on AVX-512 without and 1.12 on AVX2 without; layers of 4
# channels 0.97, 1.04, 1.24 and 1.40 (make bench-filled-widths).
_NARROW, _NARROW_AVX2 = 4, 8


def in_fours(width: int) -> int:
    """The next multiple of four."""
    return -(-width // 4) * 4


def filled_width(width: int, isa: Isa) -> int:
    """The channels that a tensor of `width` channels gets between integer convolutions: a multiple of four."""
    narrow = _NARROW if isa in {Isa.X86_VNNI, Isa.X86_AVX512} else _NARROW_AVX2
    return in_fours(width) if width <= narrow else max(in_fours(width), FEWEST_OUTPUTS)
