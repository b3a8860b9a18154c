"""What of a signed folder can be changed untold, what readers make of damage, what a kill loses, and what it costs.

    python -m benchmarks.trust.attacks --flips 10000 --files 5900 --onnx 500 --kills 200 --megabytes 1000

Flips bits at random over all files of a signed folder, one at a time; moves, swaps, removes and adds files; brings an
older release back; kills encryption and decryption at random moments and looks for the content in what is left; feeds
every reader damaged files (`mutants`); kills commands at every point at which they write (`kills`); and holds verify
and decrypt beside sha256sum: seconds of the processor, which other work on the machine does not change much, and the
memory of each process. Needs no network and the extra `trust`. `--parts` runs some of it and leaves the rest as stored.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.stored import RESULTS
from compressor.errors import CompressorError
from compressor.machine import environment
from compressor.storage import read_json, write_json
from compressor.target import Target
from compressor.trust.encryption import encrypt
from compressor.trust.keys import Kind, generate, read_private, read_public
from compressor.trust.signing import sign_folder, signed_by
from compressor.trust.trusted import TrustedKey, TrustStore
from compressor.trust.verification import check

RESULT = RESULTS / "trust.json"
_KILLED = """
import sys
from pathlib import Path
from compressor.trust.encryption import decrypt, encrypt
from compressor.trust.keys import read_private, read_public
place, what = Path(sys.argv[1]), sys.argv[2]
if what == "encrypt":
    encrypt(place / "plain", place / "out", to=[read_public(place / "box.pub")])
else:
    decrypt(place / "sealed", place / "out", read_private(place / "box"))
"""


def is_accepted(folder: Path, given: Any) -> bool:
    """Whether the folder holds, and its signature by one of the keys `given` counts; what counts is remembered."""
    try:
        checked = check(folder).require()
        signed_by(folder, checked.manifest, given).remember()
    except CompressorError:
        return False
    return True


def flips(folder: Path, given: Any, *, count: int, chance: random.Random) -> int:
    """How many of `count` flipped bits, drawn over all bytes of the folder, were told."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    sizes = [path.stat().st_size for path in paths]
    told = 0
    for path in chance.choices(paths, weights=sizes, k=count):
        before = path.read_bytes()
        raw = bytearray(before)
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        path.write_bytes(raw)
        told += not is_accepted(folder, given)
        path.write_bytes(before)
    return told


def moves(folder: Path, given: Any, place: Path) -> dict[str, bool]:
    """{what was done to a copy of the folder: whether it was told}."""
    first, second = sorted(path for path in folder.rglob("*.bin"))[:2]
    name, other = (path.relative_to(folder) for path in (first, second))

    def swapped(copy: Path) -> None:
        one, two = (copy / name).read_bytes(), (copy / other).read_bytes()
        (copy / name).write_bytes(two)
        (copy / other).write_bytes(one)

    acts: dict[str, Callable[[Path], Any]] = {
        "removed": lambda copy: (copy / name).unlink(),
        "added": lambda copy: (copy / "added").write_bytes(b""),
        "renamed": lambda copy: (copy / name).rename(copy / "renamed"),
        "swapped": swapped,
        "linked": lambda copy: ((copy / name).unlink(), (copy / name).symlink_to(first)),
        "unsigned": lambda copy: (copy / "signature.json").unlink(),
    }
    found = {}
    for what, act in acts.items():
        copy = Path(shutil.copytree(folder, place / what))
        act(copy)
        found[what] = not is_accepted(copy, given)
    return found


def replays(folder: Path, place: Path, key: Path) -> bool:
    """Whether the folder is refused once the release after it was accepted."""
    public = read_public(key.with_name(key.name + ".pub"))
    store = place / "store.json"
    TrustStore(keys={public.key_id: TrustedKey(public=public)}).write(store)
    newer = Path(shutil.copytree(folder, place / "newer"))
    (newer / "notes").write_text("better")
    sign_folder(newer, read_private(key), replaces=folder, anew=True)
    return is_accepted(folder, store) and is_accepted(newer, store) and not is_accepted(folder, store)


def kills(place: Path, *, count: int, megabytes: int, chance: random.Random) -> dict[str, int]:
    """Of `count` killed processes: how many were killed, and how many left a result or a part that can be read."""
    (place / "plain").write_bytes(chance.randbytes(1 << 20) * megabytes)
    encrypt(place / "plain", place / "sealed", to=[read_public(place / "box.pub")])
    began = {path.name for path in place.iterdir()}
    telling = (place / "plain").read_bytes()[:4096]
    found = {"killed": 0, "wrong": 0}
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", _KILLED, place, "decrypt"], check=True)
    whole = time.perf_counter() - started
    (place / "out").unlink()
    for number in range(count):
        what = ("encrypt", "decrypt")[number % 2]
        process = subprocess.Popen([sys.executable, "-c", _KILLED, place, what])
        time.sleep(chance.uniform(0, whole))
        process.kill()
        killed = process.wait() == -signal.SIGKILL
        found["killed"] += killed
        for path in [path for path in place.iterdir() if path.name not in began]:
            done = path.name == "out" and not killed
            # An encrypted part tells nothing; a whole result may have been there before the signal was.
            content = path.read_bytes()
            whole_result = path.name == "out" and (what == "encrypt" or content == (place / "plain").read_bytes())
            found["wrong"] += telling in content and not done and not whole_result
            path.unlink()
    return found


def costs(place: Path, *, megabytes: int, times: int = 3) -> dict[str, dict[str, float]]:
    """Seconds of the processor and of the clock and MiB of each command on such a file: the least of several, in turns.

    "both" decrypts what is signed, in one reading, and hashes in a thread beside.
    """
    big, chance = place / "big", random.Random(1)  # noqa: S311 - no secret
    big.mkdir()
    with (big / "model.bin").open("wb") as file:
        for _ in range(megabytes):
            file.write(chance.randbytes(1_000_000))
    sign_folder(big, read_private(place / "release"), anew=True)
    (place / "shipped").mkdir()
    sealed = encrypt(big / "model.bin", place / "shipped" / "model.bin", to=[read_public(place / "box.pub")]).path
    sign_folder(place / "shipped", read_private(place / "release"), anew=True)
    opened = ["decrypt", sealed, "--key", place / "box", "-q"]
    ours = [sys.executable, "-m", "compressor.cli"]
    commands = {
        "sha256sum": ["sha256sum", big / "model.bin"],
        "verify": [*ours, "verify", big, "--key", place / "release.pub", "-q"],
        "decrypt": [*ours, *opened],
        "both": [*ours, *opened, "--signed-by", place / "release.pub"],  # of one reading
    }
    if shutil.which("openssl"):  # which computes by the processor's own instructions where sha256sum may not
        commands["openssl"] = ["openssl", "dgst", "-sha256", big / "model.bin"]
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in commands}
    for _ in range(times):
        for name, command in commands.items():
            done = subprocess.run(
                [sys.executable, "-c", _MEASURED, *map(str, command)], capture_output=True, check=True
            )
            found[name].append(tuple(map(float, done.stdout.split()[-3:])))
    return {
        name: {
            "cpu_seconds": min(seconds for seconds, *_ in each),
            "seconds": min(seconds for _, seconds, _ in each),
            "mebibytes": max(memory for *_, memory in each),
        }
        for name, each in found.items()
    }


_MEASURED = """
import resource, subprocess, sys, time
began = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
took = time.perf_counter() - began
spent = resource.getrusage(resource.RUSAGE_CHILDREN)
print(spent.ru_utime + spent.ru_stime, took, spent.ru_maxrss / 1024)
"""


def with_keys(place: Path) -> Path:
    """`place` with the keys in it: "release" signs, "box" decrypts."""
    for name, kind in {"release": Kind.ED25519, "box": Kind.X25519}.items():
        generate(place / name, kind)
    return place


def measured(place: Path, *, count: int, killed: int, megabytes: int) -> dict[str, Any]:
    """What is done to a signed folder and to encrypted files, in the folder `place` with keys."""
    chance = random.Random(0)  # noqa: S311 - no secret
    folder = place / "signed"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.bin").write_bytes(chance.randbytes(2000 << number))
    sign_folder(folder, read_private(place / "release"), name="bench", anew=True)
    given = place / "release.pub"
    assert is_accepted(folder, given)
    told = flips(folder, given, count=count, chance=chance)
    places = {name: place / name for name in ("moves", "replays", "kills")}
    for inner in places.values():
        inner.mkdir()
    for name in ("box", "box.pub"):
        shutil.copy2(place / name, places["kills"] / name)
    moved = moves(folder, given, places["moves"])
    return {
        "flips": {"made": count, "told": told, "untold": count - told},
        "moves": moved,
        "moves_untold": sum(not told for told in moved.values()),
        "replay_refused": replays(folder, places["replays"], place / "release"),
        "secrets": kills(places["kills"], count=killed, megabytes=min(megabytes, 200), chance=chance),
    }


def priced(place: Path, *, megabytes: int, times: int = 3) -> dict[str, Any]:
    """What verify and decrypt cost beside the hash alone, in the folder `place` with keys."""
    found = costs(place, megabytes=megabytes, times=times)
    seconds = {name: row["cpu_seconds"] for name, row in found.items()}
    each = seconds["verify"] + seconds["decrypt"]

    def beside(spent: float, hashing: str) -> float | None:
        return spent / seconds[hashing] if hashing in seconds else None

    return {
        "costs": {
            "megabytes": megabytes,
            **found,
            "of_sha256sum": beside(each, "sha256sum"),
            "of_openssl": beside(each, "openssl"),
            "both_of_sha256sum": beside(seconds["both"], "sha256sum"),
            "both_of_openssl": beside(seconds["both"], "openssl"),
            "most_mebibytes": max(found[name]["mebibytes"] for name in ("verify", "decrypt", "both")),
        }
    }


PARTS = ("folder", "costs", "mutants", "kills")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument(
        "--secrets", type=int, default=40, help="kills of encryption and decryption that are looked into"
    )
    parser.add_argument("--kills", type=int, default=200, help="of commands")
    parser.add_argument("--files", type=int, default=5900, help="damaged ones for each reader")
    parser.add_argument("--onnx", type=int, default=500, help="damaged ONNX files")
    parser.add_argument("--again", action="store_true", help="does again what is stored")
    parser.add_argument("--megabytes", type=int, default=1000)
    asked = parser.parse_args()
    from benchmarks.trust import kills as killing
    from benchmarks.trust import mutants

    result: dict[str, Any] = read_json(RESULT) if RESULT.exists() else {}

    def store(**found: Any) -> None:
        result.update(found)
        write_json(RESULT, {**result, "benchmark": "trust", "environment": environment(Target())})

    def fed(place: Path) -> dict[str, Any]:
        known = {} if asked.again else result.get("mutants", {}).get("readers", {})
        made = mutants.measured(
            place, files=asked.files, onnx=asked.onnx, known=known, store=lambda found: store(mutants=found)
        )
        return {"mutants": made}

    def killed(place: Path) -> dict[str, Any]:
        known = {} if asked.again else result.get("kills", {}).get("commands", {})
        made = killing.measured(place, kills=asked.kills, known=known, store=lambda found: store(kills=found))
        return {"kills": made}

    works: dict[str, Callable[[Path], dict[str, Any]]] = {
        "folder": lambda place: measured(
            with_keys(place), count=asked.flips, killed=asked.secrets, megabytes=asked.megabytes
        ),
        "costs": lambda place: priced(with_keys(place), megabytes=asked.megabytes),
        "mutants": fed,
        "kills": killed,
    }
    for part in asked.parts:
        with tempfile.TemporaryDirectory() as place:
            store(**works[part](Path(place)))
    print(f"stored in {RESULT}")


if __name__ == "__main__":
    main()
