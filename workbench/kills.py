"""The command line killed again and again, by SIGKILL at random moments of its own time, until it ends by itself."""

import math
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# Moments are seconds of the processor, so that a busy machine moves none of them. Timings are as long as files are
# large: what a machine without noise would say again and again, after a kill too.
PROGRAM = """
import os, signal, sys, threading, time
from pathlib import Path
limit, spent = float(sys.argv.pop(1)), time.process_time()

def kill():
    while time.process_time() - spent < limit:
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGKILL)

from compressor.estimate import Estimate
from compressor.measuring import measure
from compressor.measuring.timing import Timing
from compressor.comparing import timing as together

def take(candidate, reference, *_, **__):
    one, other = (Estimate(value, value, value) for value in (len(candidate) / 1e5, len(reference) / 1e5))
    ratio = other.value / one.value
    return Timing(reference_ms=other, candidate_ms=one, speedup=Estimate(ratio, ratio, ratio))

measure.time_interleaved = together.time_interleaved = take
from compressor.cli import main
spent = time.process_time()
threading.Thread(target=kill, daemon=True).start()
try:
    main()
finally:
    Path("seconds.txt").write_text(str(time.process_time() - spent))
"""


def whole_seconds(arguments: Sequence[str], folder: Path) -> float:
    """Runs the command in `folder` to its end; the seconds of the processor that it took."""
    assert _ended(arguments, folder, math.inf)
    return float((folder / "seconds.txt").read_text())


def killed_until_it_ends(arguments: Sequence[str], folder: Path, *, seed: int, whole: float) -> int:
    """Runs the command in `folder` again and again, each time killed at a random moment; how often it was.

    `whole` is what it takes when nobody kills it. Moments come later and later, so that it ends.
    """
    moments = random.Random(seed)  # noqa: S311 - moments to kill at, not secrets
    kills = 0
    while not _ended(arguments, folder, whole * moments.uniform(0.02, 0.3 + 0.02 * kills)):
        kills += 1
    return kills


def _ended(arguments: Sequence[str], folder: Path, limit: float) -> bool:
    command = [sys.executable, "-c", PROGRAM, str(limit), *arguments]
    # Threads that wait for each other would take time of the processor.
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "COMPRESSOR_QUIET_SECONDS": "0"}
    code = subprocess.run(command, cwd=folder, env=environ, timeout=1800, check=False).returncode
    assert code in {0, -signal.SIGKILL}, f"it ended with {code}"
    return code == 0
