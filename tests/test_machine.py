import os
from pathlib import Path

import pytest

from compressor import machine
from compressor.machine import (
    core_count,
    environment,
    free_memory_bytes,
    is_busy,
    load_average,
    others_running,
    telling_flags,
)
from compressor.target import Target


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is bound to 3 cores of many counts 3; without such a binding, the machine's; 1 at least."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5, 7}, raising=False)
    assert core_count() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert core_count() == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert core_count() == 1


def test_busy_is_more_load_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A load of 2 on 2 cores is what they are for; more is busy, and a system that tells no load is not."""
    assert not is_busy((2.0, 9.0, 9.0), 2)
    assert is_busy((2.1, 0.0, 0.0), 2)
    assert not is_busy(None, 1)
    monkeypatch.delattr(os, "getloadavg")
    assert load_average() is None
    assert environment(Target())["load_average"] is None


def test_telling_flags_are_those_that_kernels_branch_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what the system reports, what chooses a kernel is told, narrow vectors first."""
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"sse2", "avx512_vnni", "fpu", "avx2", "aes"}))
    assert telling_flags() == ["avx2", "avx512_vnni"]


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_free_memory_is_the_least_of_machine_and_container(tmp_path: Path) -> None:
    """Available memory in kB; a container's limit less its use, in which cached files count as free; 4 GiB untold."""
    assert free_memory_bytes(tmp_path) == 2**32
    write(tmp_path, {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 3000 kB\n"})
    assert free_memory_bytes(tmp_path) == 3000 * 1024
    group = "sys/fs/cgroup/some/job"
    write(
        tmp_path, {"proc/self/cgroup": "0::/some/job\n", f"{group}/memory.max": "max", f"{group}/memory.current": "7"}
    )
    assert free_memory_bytes(tmp_path) == 3000 * 1024
    write(tmp_path, {f"{group}/memory.max": "2000000\n", f"{group}/memory.current": "1500000\n"})
    assert free_memory_bytes(tmp_path) == 500000
    write(tmp_path, {f"{group}/memory.stat": "anon 1\ninactive_file 200000\n"})
    assert free_memory_bytes(tmp_path) == 700000
    old = "sys/fs/cgroup/memory/memory"
    write(tmp_path, {f"{old}.limit_in_bytes": "90", f"{old}.usage_in_bytes": "100"})
    assert free_memory_bytes(tmp_path) == 0


def test_cores_are_no_more_than_the_control_group_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two and a half cores' time lets three run; "max" is no limit, and neither is the old version's -1."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    write(tmp_path, {"proc/self/cgroup": "0::/some/job\n", "sys/fs/cgroup/some/job/cpu.max": "max 100000\n"})
    assert core_count(tmp_path) == 16
    write(tmp_path, {"sys/fs/cgroup/some/job/cpu.max": "250000 100000\n"})
    assert core_count(tmp_path) == 3
    old = "sys/fs/cgroup/cpu/cpu.cfs"
    write(tmp_path, {f"{old}_quota_us": "-1\n", f"{old}_period_us": "100000\n"})
    assert core_count(tmp_path) == 3
    write(tmp_path, {f"{old}_quota_us": "50000\n"})
    assert core_count(tmp_path) == 1


def test_others_are_what_runs_less_ones_own_threads(tmp_path: Path) -> None:
    """Five want a core and two of them are this process's, one of them named oddly; untold is None."""
    assert others_running(tmp_path) is None
    write(tmp_path, {"proc/loadavg": "3.00 2.00 1.00 5/216 3200\n"})
    assert others_running(tmp_path) == 5
    for thread, stat in {"7": "7 (py) R 1 2", "8": "8 (a) S (b) R 1", "9": "9 (py) S 1 2"}.items():
        write(tmp_path, {f"proc/self/task/{thread}/stat": stat})
    assert others_running(tmp_path) == 3
    write(tmp_path, {"proc/loadavg": "odd\n"})
    assert others_running(tmp_path) is None
