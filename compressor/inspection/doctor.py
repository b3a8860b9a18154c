"""What this machine can do: versions, the CPU features that matter, and what ONNX Runtime makes of them."""

import json
import re
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.machine import core_count, environment, is_busy, load_average, telling_flags, unreadable_packages
from compressor.target import BFLOAT16, Isa, Target, cpu_flags, cpu_name

if TYPE_CHECKING:
    from rich.console import Console

DISTRIBUTION = "torch-compressor"

# Distributions whose import name is another.
_IMPORT_NAMES = {"scikit-learn": "sklearn", "pyyaml": "yaml", "torch-pruning": "torch_pruning"}
# What training a larger model, its snapshots and its reports take, generously.
_FREE_BYTES = 2 * 1024**3


class Grade(Enum):
    """How a finding is to be read."""

    GOOD = "good"
    NOTE = "note"  # works, with a limit that is worth knowing
    BAD = "bad"  # something that is needed is missing


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at, and what it means, in a sentence."""

    topic: str
    grade: Grade
    says: str


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Everything found. `environment` is what a report would record."""

    environment: dict[str, Any]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing that is needed is missing."""
        return all(finding.grade is not Grade.BAD for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The diagnosis as JSON values."""
        findings = [{"topic": item.topic, "grade": item.grade.value, "says": item.says} for item in self.findings]
        return {"healthy": self.healthy, "environment": self.environment, "findings": findings}

    def print(self, console: "Console | None" = None) -> None:
        """Prints the findings to `console`, by default the terminal."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = console or Console()
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        styles = {Grade.GOOD: ("ok", "green"), Grade.NOTE: ("note", "yellow"), Grade.BAD: ("MISSING", "red")}
        for finding in self.findings:
            table.add_row(Text(*styles[finding.grade]), Text(finding.topic, "bold"), Text(finding.says))
        console.print(table)


def diagnose() -> Diagnosis:
    """Looks at the packages, the CPU and ONNX Runtime, with a few milliseconds of calculation."""
    packages = check_packages()
    findings = [*packages, check_cpu(), *check_load()]
    described: dict[str, Any] = {}
    if all(finding.grade is not Grade.BAD for finding in packages):
        described = environment(Target())
        findings += [check_int8(Target().isa, probe_int8()), check_bfloat16(cpu_flags()), check_stages()]
    findings.append(check_disk(Path.cwd()))
    return Diagnosis(environment=described, findings=tuple(findings))


def check_packages(needed: list[str] | None = None) -> list[Finding]:
    """One finding for every needed package that is missing, too old or broken, or a single one that all is well.

    `needed` are requirements such as "torch>=2.9"; by default those of this distribution, without its extras.
    """
    if needed is None:
        try:
            needed = [text for text in requires(DISTRIBUTION) or [] if "extra ==" not in text]
        except PackageNotFoundError:
            return [
                Finding(
                    topic="packages",
                    grade=Grade.BAD,
                    says=f"{DISTRIBUTION} is not installed, so its packages cannot be checked: pip install -e .",
                )
            ]
    found, bad = [], []
    for requirement in needed:
        name = re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0]
        problem = _package_problem(name, requirement)
        if problem:
            bad.append(Finding(topic=name, grade=Grade.BAD, says=problem))
        else:
            found.append(f"{name} {version(name)}")
    return bad or [Finding(topic="packages", grade=Grade.GOOD, says=", ".join(found))]


def check_cpu() -> Finding:
    """The processor and the instruction sets that choose ONNX Runtime's kernels."""
    flags = telling_flags()
    return Finding(
        topic="cpu",
        grade=Grade.GOOD if flags else Grade.NOTE,
        says=f"{cpu_name()}: {', '.join(flags) or 'the system tells no instruction sets'}",
    )


def check_load() -> list[Finding]:
    """Whether times that are taken now can be trusted."""
    cores, load = core_count(), load_average()
    if load is None:
        return [Finding(topic="load", grade=Grade.NOTE, says=f"{cores} cores; this system tells no load")]
    now = f"{load[0]:.1f} on {cores} cores"
    if is_busy(load, cores):
        says = f"{now}: busy; times will have wide intervals, and small gains will not show"
        return [Finding(topic="load", grade=Grade.NOTE, says=says)]
    return [Finding(topic="load", grade=Grade.GOOD, says=f"{now}: quiet enough to time")]


def check_int8(isa: Isa, probe: tuple[bool, float] | None) -> Finding:
    """What 8-bit models do here. `probe` is (whether u8 x s8 products come out exactly, speed over float32)."""
    if probe is None:
        return Finding(topic="int8", grade=Grade.BAD, says="ONNX Runtime could not run a product of 8-bit matrices")
    exact, speedup = probe
    words = {
        Isa.X86_VNNI: "u8s8 static QDQ is fast (VNNI)",
        Isa.X86_AVX512: "u8s8 static QDQ works without VNNI",
        Isa.X86_AVX2: "u8s8 static QDQ works without VNNI",
        Isa.ARM_DOT: "s8s8 static QDQ is fast (dot-product instructions)",
        Isa.GENERIC: "no 8-bit instructions are known here; expect smaller files, not faster ones",
    }[isa]
    exactly = "exact" if exact else "sums saturate at 16 bits, so Quantize takes scales with which none can (portable)"
    return Finding(
        topic="int8",
        grade=Grade.GOOD if exact and isa is not Isa.GENERIC else Grade.NOTE,
        says=f"{words}; tried: {exactly}; a matrix product takes {1 / speedup:.2f} of its float32 time",
    )


def check_bfloat16(flags: frozenset[str]) -> Finding:
    """Whether training runs in bfloat16."""
    for flag, what in BFLOAT16.items():
        if flag in flags:
            return Finding(topic="training", grade=Grade.GOOD, says=f"bfloat16: yes ({what})")
    return Finding(topic="training", grade=Grade.NOTE, says="bfloat16: no; training takes float32, about half as fast")


def check_stages() -> Finding:
    """Whether every stage and criterion, those of other packages included, can be loaded."""
    from compressor.plugins import PluginWarning, reasons
    from compressor.pruning.ranking.criteria import criteria
    from compressor.stages import catalogue

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # the finding says it
        known, _ = catalogue(), criteria()
    left_out = sorted(set(reasons().values()))
    if left_out:
        return Finding(topic="stages", grade=Grade.NOTE, says=f"left out are {'; '.join(left_out)}")
    return Finding(topic="stages", grade=Grade.GOOD, says=", ".join(known))


def check_disk(folder: Path) -> Finding:
    """Whether there is room for a run's files."""
    free = shutil.disk_usage(folder).free
    gigabytes = f"{free / 1024**3:.1f} GiB free"
    if free < _FREE_BYTES:
        return Finding(topic="disk", grade=Grade.NOTE, says=f"{gigabytes} here: little for snapshots of larger models")
    return Finding(topic="disk", grade=Grade.GOOD, says=gigabytes)


def probe_int8() -> tuple[bool, float] | None:
    """(whether u8 x s8 products accumulate exactly, speed over float32) of a 256-cube product; None where it fails."""
    import numpy as np

    try:
        integer, real = _product("MatMulInteger"), _product("MatMul")
        # 255 x 127 twice is beyond 16 bits: instructions that add pairs there saturate.
        largest = {"a": np.full((256, 256), 255, np.uint8), "b": np.full((256, 256), 127, np.int8)}
        exact = bool((integer.run(None, largest)[0] == 255 * 127 * 256).all())
        floats = {name: np.ones((256, 256), np.float32) for name in "ab"}
        times = [
            (_seconds(lambda: real.run(None, floats)), _seconds(lambda: integer.run(None, largest))) for _ in range(15)
        ]
    except (RuntimeError, ValueError):
        return None
    return exact, min(real for real, _ in times) / min(integer for _, integer in times)


def _product(operator: str) -> Any:
    from onnx import TensorProto, helper

    from compressor.runtime import open_session

    left, right, result = (
        (TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32)
        if operator == "MatMulInteger"
        else (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT)
    )
    shape = [256, 256]
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", left, shape), helper.make_tensor_value_info("b", right, shape)],
        [helper.make_tensor_value_info("c", result, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return open_session(model.SerializeToString(), threads=1)


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _package_problem(name: str, requirement: str) -> str:
    try:
        have = version(name)
    except PackageNotFoundError:
        return f"not installed; pip install {json.dumps(requirement)}"
    for operator, wanted in re.findall(r"(>=|<)\s*([0-9][0-9.]*)", requirement.partition(";")[0]):
        older = _numbers(have) < _numbers(wanted)
        if older != (operator == "<"):
            return f"{have} is installed, {operator}{wanted} is needed; pip install {json.dumps(requirement)}"
    try:
        import_module(_IMPORT_NAMES.get(name.lower(), name.replace("-", "_")))
    except Exception as error:  # noqa: BLE001  # a broken binary may raise anything
        others = "; ".join(unreadable_packages()) if isinstance(error, ValueError) else ""
        cause = others or f"{type(error).__name__}: {error}"
        return f"{have} is installed and cannot be imported ({cause}){'' if others else '; install it again'}"
    return ""


def _numbers(text: str) -> tuple[int, ...]:
    numbers = [int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3]]
    return tuple(numbers + [0] * (3 - len(numbers)))
