"""Coverage-guided fuzzing of every reader: an input that reaches code which none reached before is kept and changed on.

    python -m benchmarks.trust.guided [--readers manifest packed ...] [--seconds 20] [--corpus runs/fuzz]

By atheris (libFuzzer), with the changes of `workbench.mutations` among its own: what is JSON stays JSON half of the
time. Each reader has a process of its own, which ends at the first input that ends in anything but an error of ours,
takes more than five seconds or a GiB; that input lies in CORPUS/READER/found and becomes a test beside its reader. A
corpus is kept for the next time, and kept small.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from compressor.errors import CompressorError
from workbench import ROOT

_INPUT_SECONDS, _MOST_MIB, _MOST_INPUTS = 5, 1024, 200
# What reads: to watch all that a recipe's stages import takes most of a minute.
_WATCHED = (
    "compressor.packing",
    "compressor.recipe",
    "compressor.report.record",
    "compressor.storage",
    "compressor.structure.checkpoint",
    "compressor.structure.plan",
    "compressor.tensor_files",
    "compressor.trust",
    "compressor.workloads.arrays",
)
_STAT = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_COVER = re.compile(r"\bcov: (\d+)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readers", nargs="+", help="by default all of them")
    parser.add_argument("--seconds", type=int, default=20, help="of fuzzing, for each reader")
    parser.add_argument("--corpus", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        fuzz(asked.one, asked.corpus / asked.one.replace(" ", "-"), asked.seconds)
        return
    from workbench.readers import READERS

    names = asked.readers or list(READERS)
    if unknown := sorted({*names} - {*READERS}):
        raise SystemExit(f"no reader is called {unknown[0]!r}; there are {', '.join(READERS)}")
    if found := [name for name in names if not ends_well(name, asked.corpus, asked.seconds)]:
        raise SystemExit(f"found something in {', '.join(found)}")


def ends_well(name: str, corpus: Path, seconds: int) -> bool:
    """Whether the reader stood so many seconds of fuzzing; what was tried is printed."""
    folder = corpus / name.replace(" ", "-")
    command = [sys.executable, "-m", "benchmarks.trust.guided", "--one", name]
    command += ["--seconds", str(seconds), "--corpus", str(corpus)]
    # libFuzzer ends the process, which can take nothing away: what it wrote beside goes with this folder.
    with tempfile.TemporaryDirectory() as place:
        outside = {**os.environ, "TMPDIR": place}
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=outside)
    said = ended.stdout + ended.stderr
    count, covered = _STAT.findall(said), _COVER.findall(said)
    kept = sorted((folder / "corpus").glob("*"), key=lambda path: path.stat().st_size)
    for path in kept[_MOST_INPUTS:]:
        path.unlink()
    print(
        f"{name}: {count[-1] if count else 'no'} inputs, {covered[-1] if covered else 'no'} places in the code, "
        f"{min(len(kept), _MOST_INPUTS)} inputs kept",
        flush=True,
    )
    if ended.returncode:
        print(said[-4000:], flush=True)
    return ended.returncode == 0


def unwatched() -> list[str]:
    """The package's modules that are imported as they are."""
    files = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "compressor").rglob("*.py"))
    names = (".".join(path.parts).removesuffix(".__init__") for path in files)
    return [name for name in names if not any(f"{name}.".startswith(f"{watched}.") for watched in _WATCHED)]


def fuzz(name: str, folder: Path, seconds: int) -> None:
    """Fuzzes one reader; never returns, as libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["compressor"], exclude=unwatched()):
        from workbench.readers import READERS, mutant, prepared
    warnings.simplefilter("ignore")
    place = prepared(Path(tempfile.mkdtemp()))
    reader = READERS[name]
    sample = reader.sample(place)
    reader.read(sample, place)
    for inner in ("corpus", "found"):
        (folder / inner).mkdir(parents=True, exist_ok=True)
    (folder / "corpus" / "sample").write_bytes(sample)
    longest = max(4096, 2 * len(sample))

    def read(raw: bytes) -> None:
        try:
            found = reader.read(raw, place)
        except CompressorError as error:
            if not str(error):
                raise AssertionError("an error without a sentence") from error
            return
        assert not reader.exact or raw == sample, f"{found!r} was read of other bytes"

    def changed(raw: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)  # noqa: S311 - no secret
        if chance.random() < 0.5:
            return bytes(atheris.Mutate(raw, most))
        # Damage to the good file as often as to what was kept: checks of hashes end most of the latter.
        raw = sample if chance.random() < 0.5 else raw
        how = chance.choice(("damaged", "edited"))
        return mutant(raw, chance, how=how, bare=chance.randbytes(chance.randrange(60)))[:most]

    settings = {
        "max_total_time": seconds,
        "timeout": _INPUT_SECONDS,
        "rss_limit_mb": _MOST_MIB,
        "max_len": longest,
        "print_final_stats": 1,
        "artifact_prefix": f"{folder / 'found'}/",
    }
    arguments = [f"-{key}={value}" for key, value in settings.items()]
    atheris.Setup([sys.argv[0], *arguments, str(folder / "corpus")], read, custom_mutator=changed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
