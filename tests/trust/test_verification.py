"""A folder is what its manifest says to the last byte, or every difference is told and it is refused."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compressor.cli.app import app
from compressor.errors import RunFolderError, TrustError
from compressor.storage import sha256
from compressor.trust.canonical import canonical
from compressor.trust.manifest import (
    MANIFEST,
    Manifest,
    ManifestWarning,
    described,
    read_manifest,
    retire_manifest,
    write_manifest,
)
from compressor.trust.verification import check


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three files in two levels, and their manifest."""
    place = tmp_path / "run"
    (place / "stages/01-a").mkdir(parents=True)
    (place / "model.onnx").write_bytes(b"model")
    (place / "empty").write_bytes(b"")
    (place / "stages/01-a/plan.json").write_bytes(b"[]\n")
    write_manifest(place, Manifest(files=described(place), parents=({"sha256": "0" * 64},), made={"seed": 3}))
    return place


def call(*words) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["verify", *map(str, words)])
    return result.exit_code, result.stdout, result.stderr


def value_of(folder: Path) -> dict:
    return json.loads((folder / MANIFEST).read_bytes())


def put(folder: Path, value: dict, *, seal: bool = True) -> None:
    """A manifest of somebody who knows how its digest of itself is made."""
    rest = {name: entry for name, entry in value.items() if name != "sha256"}
    (folder / MANIFEST).write_bytes(canonical({**rest, "sha256": sha256(canonical(rest)) if seal else "0" * 64}))


def test_an_untouched_folder_holds_and_so_does_each_of_its_files(folder) -> None:
    """By folder, by file, by a file deeper down, by the manifest, and under another name; as text and as JSON."""
    assert call(folder) == (
        0,
        f"{folder}: 3 files are as listed (8 bytes); nobody's signature was asked for (--key)\n",
        "",
    )
    code, out, _ = call(folder / "stages/01-a/plan.json", "--json")
    told = json.loads(out)
    assert (code, told["verified"], told["file"], told["files"]) == (0, True, "stages/01-a/plan.json", 1)
    assert check(folder / MANIFEST).files == 3
    moved = folder.rename(folder.with_name("elsewhere"))
    assert check(moved).holds
    assert check(moved).manifest.made == {"seed": 3}
    assert call(moved, "--quiet") == (0, "", "")


def swap(folder: Path) -> None:
    one, two = folder / "model.onnx", folder / "stages/01-a/plan.json"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def linked(folder: Path) -> None:
    (folder.parent / "same").write_bytes(b"model")
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(folder.parent / "same")


def linked_folder(folder: Path) -> None:
    shutil.move(folder / "stages", folder.parent / "stages")
    (folder / "stages").symlink_to(folder.parent / "stages")


ATTACKS = {
    "a changed byte": (lambda folder: (folder / "model.onnx").write_bytes(b"mOdel"), "model.onnx was changed: its SHA"),
    "a byte more": (lambda folder: (folder / "empty").write_bytes(b"1"), "empty was changed: 0 bytes are listed"),
    "a missing file": (lambda folder: (folder / "model.onnx").unlink(), "model.onnx is missing"),
    "a missing folder": (lambda folder: shutil.rmtree(folder / "stages"), "stages/01-a/plan.json is missing"),
    "an extra file": (lambda folder: (folder / "stages/b.py").write_text(""), "stages/b.py is not listed"),
    "a hidden extra file": (lambda folder: (folder / ".env").write_text(""), ".env is not listed"),
    "another spelling": (
        lambda folder: (folder / "model.onnx").rename(folder / "Model.onnx"),
        "Model.onnx is not listed",
    ),
    "two files swapped": (swap, "model.onnx was changed"),
    "a link to an equal file": (linked, "model.onnx is a link"),
    "a link to an equal folder": (linked_folder, "stages is a link"),
    "a link to a folder elsewhere": (lambda folder: (folder / "x").symlink_to("/etc"), "x is a link"),
    "a dangling link": (lambda folder: (folder / "x").symlink_to("nowhere"), "x is a link"),
    "a pipe": (lambda folder: os.mkfifo(folder / "pipe"), "pipe is a device, a pipe or a socket"),
    "a pipe in place of a file": (
        lambda folder: ((folder / "empty").unlink(), os.mkfifo(folder / "empty")),
        "empty is a link, lies behind one, or is no plain file",
    ),
    "a folder in place of a file": (
        lambda folder: ((folder / "empty").unlink(), (folder / "empty").mkdir()),
        "empty is a link, lies behind one, or is no plain file",
    ),
    "a lock": (lambda folder: (folder / ".lock").write_text(""), ".lock is there"),
    "a name of bytes": (lambda folder: Path(os.fsdecode(bytes(folder) + b"/\xff\x1b")).touch(), "is not listed"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_differs_is_told_and_refused(folder, attack) -> None:
    """Exit code 4, the file and what is wrong with it by name, in words and as JSON; nothing of a link is read."""
    change, says = ATTACKS[attack]
    change(folder)
    code, out, err = call(folder)
    assert (code, out) == (4, "")
    assert says in err
    assert err.isprintable() or err.replace("\n", "").isprintable()
    code, out, _ = call(folder, "--json")
    told = json.loads(out)
    assert (code, told["verified"]) == (4, False)
    assert any(says in f"{problem['file']} {problem['says']}" for problem in told["problems"])


def without(name: str):
    return lambda value: {key: entry for key, entry in value.items() if key != name}


def with_file(name: str, facts=None):
    return lambda value: {**value, "files": {**value["files"], name: facts or value["files"]["empty"]}}


FORGERIES = {
    "another version": (lambda value: {**value, "version": 2}, "version 2, and this program reads version 1"),
    "a version that is no number": (lambda value: {**value, "version": True}, "version"),
    "another format": (lambda value: {**value, "format": "npm"}, "no manifest of compressor's"),
    "no files": (without("files"), "other entries"),
    "an entry more": (lambda value: {**value, "trusted": True}, "other entries"),
    "files as a list": (lambda value: {**value, "files": []}, "files as an object"),
    "a name that leads out": (with_file("../passwd"), "'../passwd', which is no file"),
    "a name from the root": (with_file("/etc/passwd"), "no file that a manifest may speak of"),
    "a name with a backslash": (with_file("..\\passwd"), "no file that a manifest may speak of"),
    "a name in two spellings": (with_file("./empty"), "no file that a manifest may speak of"),
    "a name without letters": (with_file(""), "no file that a manifest may speak of"),
    "itself": (with_file(MANIFEST), "no file that a manifest may speak of"),
    "a digest in capitals": (with_file("a", {"bytes": 0, "sha256": "A" * 64}), "no size and digest"),
    "a size below zero": (with_file("a", {"bytes": -1, "sha256": "a" * 64}), "no size and digest"),
    "a size that is true": (with_file("a", {"bytes": True, "sha256": "a" * 64}), "no size and digest"),
    "parents that are none": (lambda value: {**value, "parents": [1]}, "parents as objects"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_manifest_that_no_version_writes_is_refused(folder, forgery) -> None:
    """Though its digest of itself fits: what it lists must be what a manifest can list."""
    change, says = FORGERIES[forgery]
    put(folder, change(value_of(folder)))
    code, _, err = call(folder)
    assert code == 4
    assert says in err
    code, out, _ = call(folder, "--json")
    told = json.loads(out)
    assert (code, told["verified"]) == (4, False)
    assert says in told["error"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda raw: raw + b"\n",
        lambda raw: raw.replace(b'"seed":3', b'"seed":4'),
        lambda raw: raw.replace(b'"version":1', b'"version":1,"version":1'),
        lambda raw: json.dumps(json.loads(raw), indent=1).encode(),
        lambda raw: raw[:-1],
        lambda raw: b"",
        lambda raw: b"[]",
    ],
)
def test_an_edited_manifest_is_refused(folder, edit) -> None:
    """A line break of an editor, a number, a name twice, a formatter, a cut: none of it is what was written."""
    path = folder / MANIFEST
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(TrustError, match=MANIFEST):
        check(folder)


def test_every_flipped_bit_is_found(folder) -> None:
    """Of all files and the manifest, 200 drawn at random."""
    chance = random.Random(0)  # noqa: S311 - no secret
    paths = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    for path in [*chance.choices(paths, k=50), *[folder / MANIFEST] * 150]:
        raw = bytearray(path.read_bytes())
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        before, _ = path.read_bytes(), path.write_bytes(raw)
        with pytest.raises(TrustError):
            check(folder).require()
        path.write_bytes(before)
    assert check(folder).holds


def test_what_cannot_be_verified_says_what_is_missing(folder, tmp_path) -> None:
    """Nothing there: wrong use. A folder or a file without a manifest: not trusted."""
    assert call(tmp_path / "none")[0] == 2
    (folder / MANIFEST).unlink()
    for path in (folder, folder / "model.onnx"):
        code, _, err = call(path)
        assert code == 4
        assert MANIFEST in err
    assert call(folder, "--rerun")[0] == 2
    write_manifest(folder, Manifest(files=described(folder)))
    code, _, err = call(folder / "stages")
    assert code == 2
    assert f"is a part of {folder}" in err
    assert call(folder, "--workload", "digits")[0] == 2


def test_what_may_not_be_read_is_no_stranger(folder, monkeypatch) -> None:
    """A folder that is shut to whoever verifies is refused, and nothing is to be moved away."""
    looked = os.scandir

    def shut(place):
        if Path(place).name == "01-a":
            raise PermissionError(13, "Permission denied")
        return looked(place)

    monkeypatch.setattr(os, "scandir", shut)
    code, _, err = call(folder)
    assert code == 4
    assert "stages/01-a is a folder that cannot be read (Permission denied)" in err
    assert "see to your right to read all of it" in err


def test_a_file_is_held_against_the_nearest_manifest_above(folder) -> None:
    """A file that came along is refused by name, and what else differs in the folder is not its matter."""
    (folder / "stages/extra").write_text("")
    assert call(folder / "model.onnx")[0] == 0
    code, _, err = call(folder / "stages/extra")
    assert code == 4
    assert "stages/extra is not listed" in err
    (folder / "link").symlink_to("model.onnx")
    assert call(folder / "link")[0] == 4


def test_what_a_manifest_cannot_list_is_told_when_it_is_written(folder) -> None:
    """Links are not followed, and the folder is refused while they are there."""
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.warns(ManifestWarning, match="link is a link: the manifest does not list it"):
        files = described(folder)
    write_manifest(folder, Manifest(files=files))
    assert [str(problem) for problem in check(folder).problems] == ["link is a link, and no manifest lists one"]


def test_equal_folders_have_equal_manifests_whatever_they_say(folder) -> None:
    """No time, no order of the disk; numbers that JSON has no form for become text."""
    files = dict(reversed(described(folder).items()))
    made = {"seed": 2**60, "score": float("nan"), "name": "\ud800", 1: (2,)}
    manifest = Manifest(files=files, made=made)
    assert manifest.digest == Manifest(files=described(folder), made=made).digest
    write_manifest(folder, manifest)
    assert read_manifest(folder).made == {"seed": str(2**60), "score": None, "name": "\\ud800", "1": [2]}


def test_only_manifests_of_ours_are_taken_away(folder) -> None:
    """An edited one is, so that a run goes on; another program's, a link or a folder of that name stays."""
    path = folder / MANIFEST
    path.write_bytes(path.read_bytes()[:-30] + b"edited")
    retire_manifest(folder)
    assert not path.exists()
    retire_manifest(folder)
    path.write_text('{"name": "an extension of a browser"}')
    with pytest.raises(RunFolderError, match="not what a run writes"):
        retire_manifest(folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(RunFolderError, match="not what a run writes"):
        retire_manifest(folder)
