"""What tells more than a model should is found wherever it lies, and a clean folder is called clean."""

import json
import os
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from compressor import Workload
from compressor.cli.app import app
from compressor.errors import StorageError, WrongUseError
from compressor.inspection import privacy
from compressor.inspection.privacy import own_names, require_clean, scan

NAMES = {"hlovelace": "user name", "gpu-box-7": "host name"}
# Put together here, so that no scanner of sources takes them for what they look like.
TELLING = {
    "/home/ada/models/secret.py": ("path", "/home/ada/models/secret.py"),
    "/home/jörg/größe/模型.py": ("path", "/home/jörg/größe/模型.py"),
    "C:\\Users\\ada\\model.py": ("path", "C:\\Users\\ada\\model.py"),
    "file=/Users/ada/x.pt, line 3": ("path", "/Users/ada/x.pt"),
    "made by HLOVELACE?": None,
    "made by hlovelace on Monday": ("user name", "hlovelace"),
    "node=gpu-box-7;": ("host name", "gpu-box-7"),
    "hlovelaces": None,
    "ghp" + "_" + "a1B2" * 9: ("token", "ghp_a1... (40 characters)"),
    "hf" + "_" + "aB" * 17: ("token", "hf_aBa... (37 characters)"),
    "AKIA" + "ABCDEFGH12345678": ("token", "AKIAAB... (20 characters)"),
    "-----BEGIN " + "PRIVATE KEY-----": ("private key", "-----B... (27 characters)"),
    "https" + "://me:pa55word@example.org/x": ("password in an address", "https:... (31 characters)"),
    "ask ada@example.org please": ("e-mail address", "ada@example.org"),
    "data:image/png;base64," + "iVBORw0KGgo" * 5: ("picture", "data:image/png;base64,iVBORw0KGgo"),
    "batch_norm@layer": None,
    "/usr/lib/python3": None,
    "https://example.org/a:b@c": None,
    "sk-short": None,
}


@pytest.mark.parametrize("text", TELLING)
def test_what_tells_is_found_and_what_does_not_is_not(tmp_path, text) -> None:
    """In text and between bytes that are none; secrets are shown by their beginning alone."""
    (tmp_path / "a.txt").write_text(f'{{"x": "{text}"}}')
    (tmp_path / "b.bin").write_bytes(bytes(40) + b"\xff" + text.encode() + b"\x00\x80")
    found = scan(tmp_path, names=NAMES)
    expected = TELLING[text]
    if expected is None:
        assert found == []
        return
    kind, shows = expected
    told = [(item.file, item.kind, item.shows[: len(shows)]) for item in found]
    assert {("a.txt", kind, shows), ("b.bin", kind, shows)} <= {*told}
    assert kind not in {"token", "private key"} or all(text not in str(item) for item in found)


def test_what_lies_where_two_pieces_meet_is_told_once(tmp_path, monkeypatch) -> None:
    """At every place around the border."""
    monkeypatch.setattr(privacy, "_PIECE", 4096)
    monkeypatch.setattr(privacy, "_OVERLAP", 256)
    for text in (b"/home/ada/models/secret.py", "/home/jörg/größe".encode()):
        for before in range(4096 - len(text) - 2, 4096 + 3):
            (tmp_path / "a").write_bytes(bytes(before) + text + bytes(5000))
            assert [(item.shows, item.count) for item in scan(tmp_path, names={})] == [(text.decode(), 1)], before
        (tmp_path / "a").write_bytes(bytes(4096 - len(text)) + text)
        assert [item.count for item in scan(tmp_path, names={})] == [1]


def test_what_cannot_be_looked_into_is_not_called_clean(tmp_path, monkeypatch) -> None:
    """A pipe is none of what is looked into; a file that cannot be read ends it."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WrongUseError, match="a device, a pipe or a socket is at"):
        scan(tmp_path / "pipe")
    (tmp_path / "a").write_text("")

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(StorageError, match="nothing shows what it tells; see to your right to do so"):
        scan(tmp_path / "a", names={})


def test_weights_are_not_taken_for_text(tmp_path) -> None:
    """Two megabytes at random, and as many of a normal distribution, tell nothing."""
    (tmp_path / "random").write_bytes(random.Random(0).randbytes(2_000_000))  # noqa: S311 - no secret
    (tmp_path / "normal").write_bytes(np.random.default_rng(0).normal(size=500_000).astype("f4").tobytes())
    assert scan(tmp_path, names=NAMES) == []


def test_names_in_an_onnx_file(tmp_path) -> None:
    """What exporters write into doc strings and metadata is found there."""
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []), doc_string="/home/ada/train.py:7")
    onnx.helper.set_model_props(model, {"author": "hlovelace"})
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert [(item.kind, item.shows) for item in scan(tmp_path / "model.onnx", names=NAMES)] == [
        ("path", "/home/ada/train.py"),
        ("user name", "hlovelace"),
    ]


def workload() -> Workload:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 1, 6, 6, generator=generator)
    return Workload.from_datasets(
        nn.Sequential(nn.Flatten(), nn.Linear(36, 2)),
        train=(inputs[:20], torch.zeros(20).long()),
        test=(inputs[20:], torch.ones(20).long()),
    )


def test_samples_of_the_workload_are_found(tmp_path) -> None:
    """One that lies in a file as it is given to the model, wherever; weights that only look alike are none."""
    made = workload()
    sample = next(iter(made.test))[0][3].numpy().tobytes()
    (tmp_path / "weights").write_bytes(bytes(7) + sample + bytes(3))
    (tmp_path / "others").write_bytes(np.random.default_rng(1).normal(size=4000).astype("f4").tobytes())
    assert [(item.file, item.kind, item.shows) for item in scan(tmp_path, made, names={})] == [
        ("weights", "sample", "sample 3 of test")
    ]


def test_files_that_hold_data_are_told(tmp_path) -> None:
    """By their ending, as what is compressed in them is not seen."""
    for name in ("train.npz", "model.PT"):
        (tmp_path / name).write_bytes(b"")
    assert [(item.file, item.kind) for item in scan(tmp_path)] == [
        ("model.PT", "data file"),
        ("train.npz", "data file"),
    ]


def test_names_that_thousands_have_tell_nothing(monkeypatch, tmp_path) -> None:
    """Such as those of containers; short ones are words as a rule."""
    for user, host in (("root", "localhost"), ("ada", "pc")):
        monkeypatch.setattr(privacy.getpass, "getuser", lambda user=user: user)
        monkeypatch.setattr(privacy.socket, "gethostname", lambda host=host: host)
        assert set(own_names().values()) <= {"own path"}
    monkeypatch.setattr(privacy.getpass, "getuser", lambda: "hlovelace")
    monkeypatch.setattr(privacy.socket, "gethostname", lambda: "gpu-box-7.example.org")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/root")
    assert own_names() == {**NAMES, str(tmp_path): "own path"}


def call(*words) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [*map(str, words)])
    return result.exit_code, result.stdout, result.stderr


def test_the_command(tmp_path) -> None:
    """Exit code 1 and a line for each finding; 0 and a sentence for none; 2 for nothing there."""
    assert call("inspect", tmp_path) == (0, f"{tmp_path}: nothing that tells more than it should\n", "")
    (tmp_path / "notes").write_text("see /home/ada/notes and /home/ada/notes")
    assert call("inspect", tmp_path) == (1, "notes: path: /home/ada/notes (2 times)\n", "")
    code, out, _ = call("inspect", tmp_path / "notes", "--json")
    (finding,) = json.loads(out)["findings"]
    assert (code, finding["kind"], finding["count"]) == (1, "path", 2)
    assert call("inspect", tmp_path / "none")[0] == 2
    with pytest.raises(WrongUseError, match=r"notes: path: /home/ada/notes"):
        require_clean(tmp_path)


def test_a_folder_that_tells_is_not_signed(tmp_path) -> None:
    """Unless somebody says so; nothing is written before."""
    pytest.importorskip("cryptography", reason="keys need it: pip install .[trust]")
    folder, key = tmp_path / "folder", tmp_path / "key"
    folder.mkdir()
    (folder / "notes").write_text("see /home/ada/notes")
    assert call("keygen", key)[0] == 0
    code, _, err = call("sign", folder, "--key", key, "--anew")
    assert code == 2
    assert "notes: path: /home/ada/notes" in err
    assert [path.name for path in Path(folder).iterdir()] == ["notes"]
    assert call("sign", folder, "--key", key, "--anew", "--no-inspect")[0] == 0
