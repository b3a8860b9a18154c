"""The command line: commands, shared options, errors and exit codes, the catalogue in words."""

import os
import sys
import time
from pathlib import Path

from compressor.cli.interrupts import Terminated, interruptible

__all__ = ["main"]

# How often a thread of an operator looks for the others before it sleeps: some tenths of a millisecond, and hardly at
# all where others want every core, for what it looks for is not running then.
SPINS, SPINS_BUSY = "20000", "1000"
# Looks at whether they do, and the seconds between them.
_LOOKS, _MOMENT = 3, 2e-3


def main() -> None:
    """The console command."""
    _leave_current_folder_()
    _wait_briefly_()
    with interruptible():
        try:
            from compressor.cli.app import app

            app()
        except KeyboardInterrupt as error:  # before a command began
            raise SystemExit(143 if isinstance(error, Terminated) else 130) from None


def _wait_briefly_() -> None:
    """Lets threads of an operator that wait for one another sleep soon, where the environment does not say otherwise.

    They spin for a millisecond or so as a rule. Where other programs want the cores, that is time which nobody gets:
    the demo took 52 seconds of processor time beside them, and half of it when the threads slept. It is read when
    torch is loaded, which no command has done by now.
    """
    if not any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        os.environ["GOMP_SPINCOUNT"] = SPINS_BUSY if _others_want_all_cores() else SPINS


def _others_want_all_cores() -> bool:
    from compressor.machine import core_count, others_running

    cores = core_count()
    for look in range(_LOOKS):
        if look:
            time.sleep(_MOMENT)
        if (others_running() or 0) < cores:
            return False
    return True


def _leave_current_folder_() -> None:
    """Takes the current folder from the front of the path, where `python -m` and `python -c` put it.

    A file there that is called like a library (torch.py, yaml.py) would be run in its place. In a source tree that is
    not installed the folder stays, last, for it holds this package.
    """
    folder = str(Path.cwd())
    if sys.flags.safe_path or sys.path[:1] not in ([""], [folder]):
        return
    del sys.path[0]
    if Path(__file__).parents[2] == Path(folder) and folder not in sys.path:
        sys.path.append(folder)
