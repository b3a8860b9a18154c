"""How many damaged files are read or refused as they should be: counts, for the claim.

    python -m benchmarks.mutations

Runs the tests of `make test-mutations` and stores how many files of each kind they damaged and read. Each test asserts
of its files that none is read as something else than what was written, that none ends in an error without a type, and
of ONNX files and arrays that none takes more than ten seconds or two gigabytes. Nothing is stored where a test fails.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET  # of a file that the tests of this tree have just written

from benchmarks.stored import RESULTS
from compressor.machine import environment
from compressor.storage import write_json
from compressor.target import Target
from workbench import ROOT

RESULT = RESULTS / "mutations.json"


def counted(report: str) -> tuple[dict[str, int], list[str]]:
    """({kind: files}, tests that failed) of what pytest reports as JUnit XML."""
    files: dict[str, int] = {}
    failed = []
    for case in ET.fromstring(report).iter("testcase"):  # noqa: S314 - as above
        if any(case.find(tag) is not None for tag in ("failure", "error", "skipped")):
            failed.append(case.get("name", ""))
        told = {item.get("name"): item.get("value", "") for item in case.iter("property")}
        if "damaged" in told:
            files[told["damaged"]] = files.get(told["damaged"], 0) + int(told["files"])
    return files, failed


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "mutations", "-q", f"--junitxml={report}"]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        files, failed = counted(report.read_text(encoding="utf-8"))
    if code or failed or not files:
        raise SystemExit(f"nothing is stored: {', '.join(failed) or f'pytest ended with {code}'}")
    result: dict[str, Any] = {"files": files, "all": sum(files.values()), "wrong": 0}
    write_json(RESULT, {"benchmark": "mutations", "environment": environment(Target()), **result})
    print(f"{files}; stored in {RESULT}")


if __name__ == "__main__":
    main()
