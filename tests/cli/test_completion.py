"""Completion of the shell: the real command answers as bash asks it, without torch."""

import os
import subprocess
import sys

import pytest

from workbench import ROOT

PROGRAM = (
    "import sys; sys.argv[0] = 'compressor'; from compressor.cli.app import app\n"
    "try:\n    app(prog_name='compressor')\nfinally:\n    assert 'torch' not in sys.modules\n"
)


def completed(*words: str) -> list[str]:
    """What bash would offer for the last of `words`."""
    asked = {"_COMPRESSOR_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, **asked, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert process.stderr == ""
    return process.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("compressor", "doc"), ["doctor"]),
        (("compressor", "run", "distill"), ["distill_only"]),
        (("compressor", "compare", "int8", "prune_o"), ["prune_only"]),
        (("compressor", "run", "int8", "--workload", "d"), ["digits"]),
        (("compressor", "run", "int8", "--dry"), ["--dry-run"]),
    ],
)
def test_what_the_shell_offers(words: tuple[str, ...], offered: list[str]) -> None:
    """Commands, recipes of the package, the ready workload and options."""
    assert completed(*words) == offered
