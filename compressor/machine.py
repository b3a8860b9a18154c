"""The machine and the versions that numbers come from, as every report and benchmark states them."""

import math
import os
import platform
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

from compressor.target import Target, cpu_flags, cpu_name, detect_isa

# The instruction sets on which ONNX Runtime's CPU kernels branch: widths of vectors and 8-bit dot products.
_TELLING_FLAGS = (
    "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
_PACKAGES = ("torch-compressor", "torch", "onnx", "onnxruntime", "onnxscript", "torch-pruning")


def environment(target: Target) -> dict[str, Any]:
    """The machine and the versions that the numbers come from.

    `isa` is what the target asks for, `machine_isa` what this machine is. `load_average` is over 1, 5 and 15 minutes
    (None where the system has none); `busy` says that the first exceeds `cores`: timings then deserve less trust.
    """
    cores, load = core_count(), load_average()
    return {
        "cpu": cpu_name(),
        "isa": target.isa.value,
        "machine_isa": detect_isa().value,
        "flags": telling_flags(),
        "cores": cores,
        "load_average": None if load is None else [round(value, 2) for value in load],
        "busy": is_busy(load, cores),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def unreadable_packages() -> list[str]:
    """Why installed packages keep others from being imported, each in a sentence that names the package.

    Whoever asks for entry points, torch at its import, reads the lists of all packages.
    """
    found = []
    for distribution in distributions():
        try:
            list(distribution.entry_points)
        except (ValueError, TypeError) as error:  # UnicodeDecodeError is a ValueError
            found.append(
                f"the list of entry points of {named(distribution)} in {distribution.locate_file('')} cannot be read "
                f"({error}), and whatever asks for entry points fails with it; install that package again, or "
                "uninstall it"
            )
    return found


def named(distribution: Distribution) -> str:
    """The name of a package with its version, as far as its files tell."""
    try:
        name, number = distribution.metadata["Name"], distribution.metadata["Version"]
    except UnicodeDecodeError:
        name, number = None, None
    if not name:
        folder = getattr(distribution, "_path", None)  # the one place that says more than where packages are
        return f"the package {folder.name}" if folder is not None else f"a package in {distribution.locate_file('')}"
    return f"{name} {number or ''}".strip()


def free_memory_bytes(root: Path = Path("/")) -> int:
    """What this process can take of the memory without others having to give way, as Linux tells it below `root`.

    The least of what the machine has available and what the control group leaves (a container's limit). Where the
    system tells nothing, 4 GiB.
    """
    found = [_available(root), *_left_by_control_groups(root)]
    return min((size for size in found if size is not None), default=2**32)


def core_count(root: Path = Path("/")) -> int:
    """The cores that this process may use, at least 1: those it may run on, or what its control group is given."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [math.ceil(quota) for quota in _quotas(root)]
    return max(1, min([own, *quotas]))


def others_running(root: Path = Path("/")) -> int | None:
    """How many threads of other processes run or wait for a core at this moment; None where nothing tells."""
    fields = " ".join(_lines(root / "proc/loadavg")).split()
    if len(fields) < 4 or not fields[3].partition("/")[0].isdigit():
        return None
    states = [" ".join(_lines(path)).rpartition(")")[2].split()[:1] for path in root.glob("proc/self/task/*/stat")]
    return max(0, int(fields[3].partition("/")[0]) - states.count(["R"]))


def load_average() -> tuple[float, float, float] | None:
    """How many processes wanted a core, over 1, 5 and 15 minutes; None where the system does not tell."""
    return os.getloadavg() if hasattr(os, "getloadavg") else None


def is_busy(load: tuple[float, float, float] | None, cores: int) -> bool:
    """Whether more processes than `cores` wanted one in the last minute: timings then deserve less trust."""
    return load is not None and load[0] > cores


def telling_flags() -> list[str]:
    """The instruction sets of this CPU on which ONNX Runtime's kernels branch, narrow ones first."""
    flags = cpu_flags()
    return [flag for flag in _TELLING_FLAGS if flag in flags]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _available(root: Path) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _control_groups(root: Path) -> set[Path]:
    """The folders of this process's control group, of version 2, and of the one around it."""
    own = [line.rpartition(":")[2] for line in _lines(root / "proc/self/cgroup") if line.startswith("0::")]
    return {root / "sys/fs/cgroup" / part.strip("/") for part in (*own, "")}


def _quotas(root: Path) -> list[float]:
    """How many cores' time each of the control group's limits leaves, of version 2 and of version 1."""
    old = root / "sys/fs/cgroup/cpu"
    pairs = [" ".join(_lines(folder / "cpu.max")).split() for folder in _control_groups(root)]
    pairs.append([line for name in ("quota", "period") for line in _lines(old / f"cpu.cfs_{name}_us")[:1]])
    return [
        int(pair[0]) / int(pair[1])
        for pair in pairs
        if len(pair) == 2 and all(number.isdigit() for number in pair) and int(pair[0]) and int(pair[1])
    ]


def _left_by_control_groups(root: Path) -> list[int]:
    """What each of the control group's limits leaves, of version 2 and of version 1."""
    folders = _control_groups(root)
    pairs = [(folder / "memory.max", folder / "memory.current", folder / "memory.stat") for folder in folders]
    old = root / "sys/fs/cgroup/memory"
    pairs.append((old / "memory.limit_in_bytes", old / "memory.usage_in_bytes", old / "memory.stat"))
    left = []
    for limit, usage, statistics in pairs:
        numbers = [line for path in (limit, usage) for line in _lines(path)[:1]]
        if len(numbers) == 2 and all(number.isdigit() for number in numbers):
            # Cached files count as used, and give way.
            cached = [line.split()[1] for line in _lines(statistics) if line.startswith("inactive_file ")]
            left.append(max(0, int(numbers[0]) - int(numbers[1]) + sum(map(int, cached))))
    return left


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
