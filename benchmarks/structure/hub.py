"""Takes one small member of every family of torchvision and timm through the product, and stores what became of each.

python -m benchmarks.structure.hub [--only TEXT] [--again {failed,refused,all}]

What is stored is not run again, so that a stopped run goes on.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from time import monotonic

from benchmarks.stored import RESULTS, load
from benchmarks.structure.architectures import short
from benchmarks.structure.hub_members import MEMBERS, Member, absent
from benchmarks.structure.hub_process import STEPS, HubOutcome
from compressor.machine import environment
from compressor.storage import write_atomic
from compressor.target import Target
from workbench import ROOT

RESULT = RESULTS / "hub.json"
# Several times what the slowest member takes on two cores.
SECONDS = 1200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run the families alone whose name contains this")
    parser.add_argument("--again", choices=["failed", "refused", "all"], help="run again what had this outcome")
    options = parser.parse_args()
    missing = absent()
    if missing is not None:
        raise SystemExit(f"{missing} is not installed; run `make bench-hub`, which makes an environment with it")
    run(options.only, options.again)


def run(only: str = "", again: str | None = None) -> None:
    """Runs what is not stored yet, of the families whose name contains `only`; stores each outcome as it stands."""
    rows = {row["family"]: row for row in (load("hub") or {"members": []})["members"]}
    for member in MEMBERS:
        row = rows.get(member.family)
        if only.lower() not in member.family.lower() or (row and again not in {"all", row["outcome"]}):
            continue
        rows[member.family] = row = row_of(outcome_of(member))
        print(
            f"{member.family:34} {row['outcome']:8} {row['step']:9} {row['seconds']:5.0f} s  {row['reason'][:150]}",
            flush=True,
        )
        store(list(rows.values()))
    print(dict(Counter(row["outcome"] for row in rows.values())))


def row_of(outcome: HubOutcome) -> dict:
    """`outcome` as it is stored, without the paths of this machine."""
    row = {**asdict(outcome), "reason": short(outcome.reason), "seconds": round(outcome.seconds, 1)}
    row["locked"] = {layer: short(why) for layer, why in outcome.locked.items()}
    return row


def store(rows: list[dict]) -> None:
    """Writes the outcomes, in the order of the families, with the machine and the versions they come from."""
    order = {member.family: number for number, member in enumerate(MEMBERS)}
    kept = sorted((row for row in rows if row["family"] in order), key=lambda row: order[row["family"]])
    versions = {library: version(library) for library in ("torchvision", "timm")}
    stored = {"environment": environment(Target()), **versions, "members": kept}
    write_atomic(RESULT, json.dumps(stored, indent=1) + "\n")


def outcome_of(member: Member) -> HubOutcome:
    """What becomes of `member` in a process of its own, which ends after `SECONDS`; nothing is raised."""
    start = monotonic()
    command = [sys.executable, "-m", "benchmarks.structure.hub_process", member.family]
    known = {"family": member.family, "library": member.library, "name": member.name}
    # In a session of its own, so that what it started ends with it.
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        printed, errors = process.communicate(timeout=SECONDS)
        reason = f"its process ended with {process.returncode}: {(errors.strip().splitlines() or [''])[-1]}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        reason = f"it was not done within {SECONDS} seconds"
    if process.returncode == 0:
        return HubOutcome(**json.loads(printed.splitlines()[-1]))
    return HubOutcome(**known, outcome="failed", step=_last_step(printed), reason=reason, seconds=monotonic() - start)


def _last_step(printed: str) -> str:
    return next((line for line in reversed(printed.splitlines()) if line in STEPS), "build")


if __name__ == "__main__":
    main()
