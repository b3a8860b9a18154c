"""What the project is built of: the locked development environment, and the bill of materials of the package.

    python -m workbench.supply lock
    python -m workbench.supply sbom --out build/sbom.cdx.json
    python -m workbench.supply wheel --out build/wheel

`lock` writes requirements.lock from the environment that it runs in: every package that the development environment
needs, but torch and what torch alone brings, with the SHA-256 of the files that pip would take on this platform. `sbom`
writes what the package needs where it runs, as CycloneDX 1.6. `wheel` builds the package, of the time of its last
commit.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from workbench import ROOT

LOCK = ROOT / "requirements.lock"
_HEAD = """# The development environment by hash: `make locked` installs it, `make lock` writes it anew.
# Files of the platform that CI runs on; torch is the user's own build and stays out.
"""
# What becomes part of the wheel, besides the files at the top.
_PACKAGED = ("compressor/", "recipes/")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def canonical(name: str) -> str:
    """The name of a package in the one spelling that PEP 503 gives it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def name_of(requirement: str) -> str:
    """The package that a line such as "ray[client]>=2.40" asks for."""
    found = _NAME.match(requirement)
    assert found is not None, requirement
    return found[0]


def needed(requirements: Iterable[str], *, without: frozenset[str] = frozenset({"torch"})) -> dict[str, str]:
    """{name: version} of what is installed and needed by `requirements`, those of the needed ones included.

    Raises SystemExit for what is not installed.
    """
    from packaging.requirements import Requirement

    found: dict[str, str] = {}
    seen: set[tuple[str, tuple[str, ...]]] = set()
    todo = [Requirement(line) for line in requirements]
    while todo:
        one = todo.pop()
        key = canonical(one.name), tuple(sorted(one.extras))
        if key[0] in without or key in seen:
            continue
        seen.add(key)
        try:
            installed = metadata.distribution(key[0])
        except metadata.PackageNotFoundError:
            raise SystemExit(f"{one.name} is not installed; make the environment first: make check") from None
        found[key[0]] = installed.version
        for line in installed.requires or ():
            further = Requirement(line)
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in ("", *one.extras)):
                todo.append(further)
    return dict(sorted(found.items()))


def declared(*extras: str) -> list[str]:
    """What pyproject.toml says that the package needs, with these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]


def hashes(pins: Mapping[str, str]) -> dict[str, str]:
    """{name: SHA-256} of the files that pip would take for these versions, from wherever pip is set to look."""
    with tempfile.TemporaryDirectory() as place:
        wanted, report = Path(place) / "pins", Path(place) / "report"
        wanted.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()), encoding="utf-8")
        options = ["--dry-run", "--no-deps", "--ignore-installed", "--only-binary", ":all:", "--quiet"]
        command = [sys.executable, "-m", "pip", "install", *options, "--report", str(report), "-r", str(wanted)]
        subprocess.run(command, check=True)
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {
        canonical(each["metadata"]["name"]): each["download_info"]["archive_info"]["hashes"]["sha256"]
        for each in installs
    }


def lock_of(pins: Mapping[str, str], digests: Mapping[str, str]) -> str:
    """The text of the lock: a line for each package, with its hash."""
    return _HEAD + "".join(f"{name}=={version} --hash=sha256:{digests[name]}\n" for name, version in pins.items())


def locked(text: str) -> Iterator[tuple[str, str, str]]:
    """(name, version, SHA-256) of every line of a lock. Raises ValueError for a line that is none."""
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        found = re.fullmatch(r"([a-z0-9-]+)==(\S+) --hash=sha256:([0-9a-f]{64})", line)
        if found is None:
            raise ValueError(f"no line of a lock: {line[:100]!r}")
        yield found[1], found[2], found[3]


def bill() -> dict[str, Any]:
    """The bill of materials of what is installed for the package at run time: CycloneDX 1.6, without a time in it."""
    own = metadata.distribution("torch-compressor")
    parts = needed(declared(), without=frozenset())
    name = canonical(own.metadata["Name"])
    licenses = {part: _license(part) for part in parts}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "bom-ref": f"pkg:pypi/{name}@{own.version}",
                "name": name,
                "version": own.version,
                "purl": f"pkg:pypi/{name}@{own.version}",
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        },
        "components": [
            {
                "type": "library",
                "bom-ref": f"pkg:pypi/{part}@{version}",
                "name": part,
                "version": version,
                "purl": f"pkg:pypi/{part}@{version}",
                **({"licenses": [{"license": {"name": licenses[part]}}]} if licenses[part] else {}),
            }
            for part, version in parts.items()
        ],
        "dependencies": [
            {
                "ref": f"pkg:pypi/{name}@{own.version}",
                "dependsOn": [
                    f"pkg:pypi/{part}@{parts[part]}"
                    for part in sorted({canonical(name_of(line)) for line in declared()})
                ],
            }
        ],
    }


def wheel(out: Path, *, epoch: int) -> Path:
    """Builds the wheel from what git tracks, and gives its path in `out`; equal sources give equal bytes.

    `epoch` (seconds since 1970) is the time of its members. Their rights are those of everybody who may read, whatever
    the umask is under which the sources were checked out. The build needs no network.
    """
    listed = _git("ls-files", "-z")
    with tempfile.TemporaryDirectory() as place:
        tree = Path(place) / "source"
        for name in filter(None, listed.split("\0")):
            if not name.startswith(_PACKAGED) and "/" in name:
                continue
            path = tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((ROOT / name).read_bytes())
            path.chmod(0o644)
        options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(out.resolve())]
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", *options, "."],
            cwd=tree,
            env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)},
            umask=0o022,
            check=True,
        )
    (built,) = out.glob("*.whl")
    return built


def _git(*words: str) -> str:
    command = ["git", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout


def _license(name: str) -> str:
    """What the package says its license is, in one short line."""
    about = metadata.metadata(name)
    said = about.get("License-Expression") or about.get("License") or ""
    return said.strip().splitlines()[0][:100] if said.strip() else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["lock", "sbom", "wheel"])
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args()
    if asked.what == "lock":
        pins = needed(declared("dev", "bench"))
        out = asked.out or LOCK
        out.write_text(lock_of(pins, hashes(pins)), encoding="utf-8")
    elif asked.what == "wheel":
        out = wheel(asked.out or ROOT / "build/wheel", epoch=int(_git("log", "-1", "--format=%ct")))
    else:
        out = asked.out or ROOT / "build/sbom.cdx.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(bill(), indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"{out}\n")


if __name__ == "__main__":
    main()
