"""Key pairs and a signed folder, made once."""

import shutil
from pathlib import Path

import pytest

from compressor.trust.manifest import Manifest, described, write_manifest


@pytest.fixture(scope="session")
def keys(tmp_path_factory) -> Path:
    """A folder with the pairs release, other (ed25519), nist (p256) and box, crate (x25519)."""
    pytest.importorskip("cryptography", reason="keys need it: pip install .[trust]")
    from compressor.trust.keys import Kind, generate

    place = tmp_path_factory.mktemp("keys")
    kinds = {
        "release": Kind.ED25519,
        "other": Kind.ED25519,
        "nist": Kind.P256,
        "box": Kind.X25519,
        "crate": Kind.X25519,
    }
    for name, kind in kinds.items():
        generate(place / name, kind)
    return place


@pytest.fixture
def made(tmp_path) -> Path:
    """A folder of three files in two levels, with its manifest."""
    place = tmp_path / "made"
    (place / "stages/01-a").mkdir(parents=True)
    (place / "model.onnx").write_bytes(b"model")
    (place / "a-b").write_bytes(b"")
    (place / "stages/01-a/plan.json").write_bytes(b"[]\n")
    write_manifest(place, Manifest(files=described(place)))
    return place


@pytest.fixture
def signed(made, keys) -> Path:
    """The same as release 2 of "digits", signed by the key called release."""
    from compressor.trust.keys import read_private
    from compressor.trust.signing import sign_folder

    sign_folder(made, read_private(keys / "release"), name="digits", release=2)
    return made


@pytest.fixture
def copied(signed, tmp_path):
    """A function that gives a copy of the signed folder under another name."""
    return lambda name: Path(shutil.copytree(signed, tmp_path / name))
