"""Commands that are killed at every point at which they write, and at random moments, and given again until they end.

Each of run, compare, pack, sign and encrypt is killed (SIGKILL) once at every distinct write point, which is a call of
the system (open to write, fsync, rename, link, unlink) on a file; then at random moments until there were as many kills
as wanted, and a quarter of as many at least. After every kill what was there before must be there, old or new and
whole; in the end the files must be those of a command that nobody killed, byte for byte, or what verifies and decrypts
to the same. No file is timed, and a model is exported once, so that the next command is soon where the one before was
killed.
"""

import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from compressor.cli.app import app
from compressor.comparing import timing as together
from compressor.errors import CompressorError
from compressor.estimate import Estimate
from compressor.files import export, exporters
from compressor.measuring import measure
from compressor.measuring.timing import Timing
from compressor.packing.files import unpack
from compressor.storage import sha256
from compressor.trust.encryption import decrypted
from compressor.trust.keys import Kind, generate, read_private
from compressor.trust.manifest import MANIFEST
from compressor.trust.signing import sign_folder, signed_by
from compressor.trust.verification import check
from compressor.workload import Workload
from workbench.remembered_exports import remembered
from workbench.tiny import TinyResNet, make_workload

_RECIPE = """
name: {name}
stages:
  - drop_blocks: {{remove: 0.5}}
  - distill: {{epochs: {epochs}, tail_epochs: 0}}
  - quantize
"""
_TEMPORARY = re.compile(r"\.compressor-[^/]*\.tmp")
# What is called otherwise each time: such files, folders of the system's, and ONNX Runtime's profiles.
_VARIES = re.compile(rf"{_TEMPORARY.pattern}|(?<=/)tmp[a-z0-9_]{{8}}(?=/|$)|profile_[^/]*\.json")
# A command that is given again so often and is killed no more has hung or goes in a circle.
_MOST_ROUNDS = 2000


def tiny() -> Workload:
    """A small network with data, made anew."""
    torch.manual_seed(0)
    return make_workload(TinyResNet().eval(), train=512)


@dataclass(frozen=True)
class Tried:
    """A command, what must hold whenever it was killed, what its files are when it has ended, and how they are removed.

    Where nothing is removed, the command does as much when it is given again.
    """

    command: list[str]
    intact: Callable[[], bool]
    result: Callable[[], Any]
    anew: Callable[[], object] = lambda: None


def tries(place: Path, whole: Path) -> dict[str, Callable[[Path], Tried]]:
    """{command: what is tried in an empty folder}; `place` has keys and recipes, `whole` a model and a run's folder."""
    model = whole / "model.onnx"
    options = ["--workload", "benchmarks.trust.kills:tiny", "--quiet", "--no-store"]

    def run(out: Path) -> Tried:
        def result() -> Any:
            return runs_in(out / "run")

        command = ["run", str(place / "a.yaml"), *options, "--out", str(out / "run")]
        return Tried(command, lambda: True, result, lambda: shutil.rmtree(out / "run", ignore_errors=True))

    def compare(out: Path) -> Tried:
        def result() -> Any:
            names = {path.name for path in (out / "all").iterdir() if not path.name.startswith(".")}
            return runs_in(out / "all"), sorted(names)

        command = ["compare", *(str(place / f"{name}.yaml") for name in "ab"), *options, "--out", str(out / "all")]
        return Tried(command, lambda: True, result, lambda: shutil.rmtree(out / "all", ignore_errors=True))

    def pack(out: Path) -> Tried:
        packed, source = out / "model.pack", model.read_bytes()

        def intact() -> bool:
            if packed.exists():
                unpack(packed, out / "again")
                (out / "again").unlink()
            return model.read_bytes() == source

        command = ["pack", str(model), "--out", str(packed), "--quiet"]
        return Tried(command, intact, lambda: sha256(packed.read_bytes()), lambda: packed.unlink(missing_ok=True))

    def sign(out: Path) -> Tried:
        folder = Path(shutil.copytree(whole, out / "signed"))
        key = place / "p256"
        sign_folder(folder, read_private(key), name="tiny")

        def releases() -> int:
            public = place / "p256.pub"
            checked = check(folder)
            # Half a signature, which nobody takes for a file of the folder; the next signer takes it away.
            others = [one for one in checked.problems if not _TEMPORARY.fullmatch(one.name) and one.kind != "signature"]
            assert not others, others
            statement = signed_by(folder, checked.manifest, public).statement
            assert statement is not None
            return statement.release

        def result() -> Any:
            return releases(), check(folder).holds, sorted(path.name for path in folder.iterdir())

        command = ["sign", str(folder), "--key", str(key), "--name", "tiny", "--release", "2", "--openssf"]
        return Tried([*command, "--no-inspect", "--quiet"], lambda: releases() in {1, 2}, result)

    def encrypt(out: Path) -> Tried:
        sealed, source = out / "model.enc", model.read_bytes()

        def result() -> Any:
            return decrypted(sealed, read_private(place / "x25519")) == source

        command = ["encrypt", str(model), "--to", str(place / "x25519.pub"), "--out", str(sealed), "--quiet"]
        return Tried(
            command,
            lambda: model.read_bytes() == source and (not sealed.exists() or result()),
            result,
            lambda: sealed.unlink(missing_ok=True),
        )

    # The quick ones first: what runs for minutes comes last.
    return {"pack": pack, "sign": sign, "encrypt": encrypt, "run": run, "compare": compare}


def briefly_(written: Path) -> None:
    """Lets files take as long as they are large, and keeps what was exported in the folder `written`.

    Neither writes to a run, and measured times differ from run to run, and what is chosen by them.
    """

    def taken(candidate: bytes, reference: bytes, *_: Any, **__: Any) -> Timing:
        own, other = (Estimate(value, value, value) for value in (len(candidate) / 1e5, len(reference) / 1e5))
        ratio = other.value / own.value
        return Timing(reference_ms=other, candidate_ms=own, speedup=Estimate(ratio, ratio, ratio))

    measure.time_interleaved = together.time_interleaved = taken
    export.write = partial(remembered, exporters.write, written)


def runs_in(folder: Path) -> tuple[dict[str, str], dict[str, bool]]:
    """({ONNX file: SHA-256}, {folder of a run: whether all of it is as its manifest lists it}) below `folder`."""
    models = {str(path.relative_to(folder)): sha256(path.read_bytes()) for path in folder.rglob("model.onnx")}
    runs = {str(path.parent.relative_to(folder)): check(path.parent).holds for path in folder.rglob(MANIFEST)}
    return models, runs


def prepared(place: Path, *, epochs: int) -> Path:
    """Puts keys and recipes into `place`, and gives the folder of a whole run."""
    for kind in (Kind.P256, Kind.X25519):
        generate(place / kind.value, kind)
    for name, length in (("a", epochs), ("b", 1)):
        (place / f"{name}.yaml").write_text(_RECIPE.format(name=name, epochs=length), encoding="utf-8")
    made = place / "whole"
    made.mkdir()
    command = tries(place, made)["run"](made).command
    if end := ended(command, place / "said"):
        raise SystemExit(f"the run that nobody killed ended with {end}: {(place / 'said').read_text()}")
    return made / "run"


def ended(command: list[str], said: Path, *, seen: Path | None = None, seconds: float | None = None) -> int:
    """How the command ended in a process of its own: its exit code, or less than 0 where it was killed.

    With `seen` it kills itself at the first write point that is not in that file yet, and notes it there; after
    `seconds` it is killed from here.
    """
    process = os.fork()
    if process == 0:
        _work(command, said, seen)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _work(command: list[str], said: Path, seen: Path | None) -> None:
    code = 1
    try:
        sink = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        if seen is not None:
            _hook_(seen)
        app(command)
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 0 if ending.code is None else 1
    except BaseException:  # noqa: BLE001 - the process ends here, whatever it was
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _hook_(seen: Path) -> None:
    """Lets this process kill itself before the first write that `seen` does not name, and name it there."""
    known, own = set(seen.read_text().splitlines()) if seen.exists() else set(), os.getpid()
    real = os.open

    def point(what: str, path: Any) -> None:
        name = f"{what} {_VARIES.sub('part', os.fsdecode(path))}"
        if os.getpid() != own or name in known or not isinstance(path, str | bytes | os.PathLike):
            return
        with os.fdopen(real(seen, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "w") as file:
            file.write(f"{name}\n")
        os.kill(own, signal.SIGKILL)

    def before(what: str, *, place: int) -> None:
        call = getattr(os, what)

        def hooked(*given: Any, **named: Any) -> Any:
            path = given[place]
            point(what, f"/proc/self/fd/{path}" if isinstance(path, int) else path)
            return call(*given, **named)

        def synced(descriptor: int) -> Any:
            point(what, Path(f"/proc/self/fd/{descriptor}").readlink())
            return call(descriptor)

        def opened(path: Any, flags: int, *given: Any, **named: Any) -> Any:
            if flags & (os.O_WRONLY | os.O_RDWR):
                point(what, path)
            return call(path, flags, *given, **named)

        setattr(os, what, {"fsync": synced, "open": opened}.get(what, hooked))

    for what, place in {"open": 0, "fsync": 0, "replace": 1, "link": 1, "unlink": 0}.items():
        before(what, place=place)


def at_every_point(tried: Tried, place: Path) -> int:
    """Kills the command once at every write point, and lets it end; how many kills that were."""
    for kills in range(_MOST_ROUNDS):
        end = ended(tried.command, place / "said", seen=place / "seen")
        if end == 0:
            return kills
        if end != -signal.SIGKILL or not tried.intact():
            raise SystemExit(f"{tried.command[0]} ended with {end}: {(place / 'said').read_text()[-2000:]}")
    raise SystemExit(f"{tried.command[0]} is killed for ever")


def at_random(tried: Tried, place: Path, *, count: int, whole: float, chance: random.Random) -> int:
    """Kills the command at random moments of the `whole` seconds that it takes, and lets it end; how many were in time.

    Where it ended before, what it made is taken away, so that the next one has something to do.
    """
    kills = 0
    for _ in range(min(_MOST_ROUNDS, 20 * count)):
        if kills == count:
            break
        end = ended(tried.command, place / "said", seconds=chance.uniform(0, whole))
        if end not in {0, -signal.SIGKILL} or not tried.intact():
            raise SystemExit(f"{tried.command[0]} ended with {end}: {(place / 'said').read_text()[-2000:]}")
        if end == 0:
            tried.anew()
        kills += end != 0
    if end := ended(tried.command, place / "said"):
        raise SystemExit(f"{tried.command[0]} ended with {end}: {(place / 'said').read_text()[-2000:]}")
    return kills


def at_moments(kills: int, row: Mapping[str, Any]) -> int:
    """How many of so many `kills` of a command have to come at random moments, beside those of `row` at its points."""
    return max(kills // 4, kills - row["points"])


def of_one(
    make: Callable[[Path], Tried], place: Path, *, count: int, chance: random.Random, known: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What became of one command: kills, of those at write points, and how many ends were not as if nobody had.

    What is `known` of its write points is not done again.
    """
    found: dict[str, Any] = {"kills": 0, "points": 0, "lost": 0, "other": 0, **(known or {})}
    places = {name: place / name for name in ("whole", "points", "random")}
    for inner in places.values():
        inner.mkdir()
    tried = make(places["whole"])
    began = time.perf_counter()
    if end := ended(tried.command, place / "said"):
        raise SystemExit(f"{tried.command[0]} ended with {end}: {(place / 'said').read_text()[-2000:]}")
    whole, wanted = time.perf_counter() - began, tried.result()
    for name in ("points", "random") if known is None else ("random",):
        tried = make(places[name])
        if name == "points":
            found["points"] = kills = at_every_point(tried, place)
        else:
            so_far = found["kills"] - found["points"]
            kills = at_random(tried, place, count=at_moments(count, found) - so_far, whole=whole, chance=chance)
        found["kills"] += kills
        try:
            found["other"] += tried.result() != wanted
        except (CompressorError, OSError):
            found["lost"] += 1
    return found


def measured(
    place: Path,
    *,
    kills: int,
    epochs: int = 2,
    known: Mapping[str, dict[str, Any]] | None = None,
    store: Callable[[dict[str, Any]], object] = lambda found: found,
) -> dict[str, Any]:
    """{command: what became of it}; `store` gets the rows after each, and what is `known` stays, as far as it goes."""
    os.environ.update({"COMPRESSOR_QUIET_SECONDS": "0", "COMPRESSOR_TURNS": "off"})
    briefly_(place / "written")
    torch.set_num_threads(1)  # two of a command would wait for each other
    chance = random.Random(0)  # noqa: S311 - moments, no secrets
    makers = tries(place, prepared(place, epochs=epochs))
    rows = dict(known or {})
    found: dict[str, Any] = {}
    count = kills // len(makers)
    for name in makers:
        row = rows.get(name)
        if row is None or row["kills"] - row["points"] < at_moments(count, row):
            inner = place / f"of {name}"
            inner.mkdir()
            rows[name] = of_one(makers[name], inner, count=count, chance=chance, known=row)
            print(f"{name}: {rows[name]}", flush=True)
        sums = {what: sum(row[what] for row in rows.values()) for what in ("kills", "points", "lost", "other")}
        store(found := {"commands": {each: rows[each] for each in makers if each in rows}, "all": sums})
    return found
