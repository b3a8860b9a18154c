"""The audit log: whatever is done is written down first, and no line of it can go, change, move or come unseen."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compressor.cli.app import app
from compressor.cli.studio import logged
from compressor.errors import TrustError, WriteError, WrongUseError
from compressor.storage import sha256, write_sealed
from compressor.studio.access import Role, Session
from compressor.trust import audit
from compressor.trust.audit import HEAD, LOG, VARIABLE, AuditLog, log_above
from compressor.trust.canonical import canonical


@pytest.fixture(autouse=True)
def _no_log_elsewhere(monkeypatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def log(tmp_path) -> AuditLog:
    """A log of four entries."""
    log = AuditLog.begin(tmp_path / "runs")
    for did in ("run", "sign", "pack"):
        log.append(did, what=tmp_path / "runs/digits", facts={"given": {"name": did}})
    return log


def call(*words) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [*map(str, words)])
    return result.exit_code, result.stdout, result.stderr


def lines_of(log: AuditLog) -> list[bytes]:
    return (log.folder / LOG).read_bytes().splitlines(keepends=True)


def resealed(said: bytes, **changes) -> bytes:
    """A line that says something else, with a digest of itself that fits."""
    value = json.loads(said) | changes
    del value["sha256"]
    return canonical({**value, "sha256": sha256(canonical(value))}) + b"\n"


def remade(lines: list[bytes], first: int, **changes) -> list[bytes]:
    """The log made anew from line `first` (0 is the first) on: every digest fits the one before."""
    made = lines[:first]
    for line in lines[first:]:
        previous = json.loads(made[-1])["sha256"] if made else "0" * 64
        made.append(resealed(line, **changes, line=len(made) + 1, previous=previous))
        changes = {}
    return made


BROKEN: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "the first removed": (lambda lines: lines[1:], "line 1 is line 2"),
    "one in the middle removed": (lambda lines: [*lines[:1], *lines[2:]], "line 2 is line 3"),
    "the last two removed": (lambda lines: lines[:2], "line 3 is missing: 4 were written, and 2 are there"),
    "all removed": (lambda _: [], "line 1 is missing: 4 were written"),
    "cut off in a line that is not the last": (lambda lines: [*lines[:2], lines[2][:40]], "line 3 is cut off"),
    "a byte changed": (lambda lines: [lines[0], lines[1].replace(b"run", b"ruN", 1), *lines[2:]], "line 2 was changed"),
    "changed with a digest to fit": (
        lambda lines: [lines[0], resealed(lines[1], did="nothing"), *lines[2:]],
        "line 3 does not follow the line before it",
    ),
    "two swapped": (lambda lines: [lines[0], lines[2], lines[1], lines[3]], "line 2 is line 3"),
    "swapped and numbered to fit": (
        lambda lines: [lines[0], resealed(lines[2], line=2), resealed(lines[1], line=3), lines[3]],
        "line 2 does not follow",
    ),
    "one twice": (lambda lines: [*lines[:2], lines[1], *lines[2:]], "line 3 is line 2"),
    "text at the end": (lambda lines: [*lines, b"and so on"], "line 5 is cut off, or no line that was written"),
    "a line of text at the end": (lambda lines: [*lines, b"and so on\n"], "line 5 was changed"),
    "an empty line": (lambda lines: [*lines[:2], b"\n", *lines[2:]], "line 3 was changed"),
    "a line that fits at the end": (
        lambda lines: remade([*lines, lines[1]], 4),
        "line 5 came along: 4 were written",
    ),
    "all of it made anew": (lambda lines: remade(lines, 1, did="nothing"), "line 4 is not the one that was written"),
    "in another spelling": (lambda lines: [lines[0].replace(b":", b": ", 1), *lines[1:]], "line 1 was changed"),
    "an entry more": (lambda lines: [resealed(lines[0], trusted=True), *lines[1:]], "line 1 was changed"),
}


@pytest.mark.parametrize("way", BROKEN)
def test_a_broken_chain_is_told_with_its_first_bad_line(log, way) -> None:
    """Exit code 4, by words and as JSON; what came before that line is good."""
    change, says = BROKEN[way]
    (log.folder / LOG).write_bytes(b"".join(change(lines_of(log))))
    with pytest.raises(TrustError, match=f"{LOG}: {says}"):
        list(log.entries())
    code, _, err = call("audit", log.folder)
    assert code == 4
    assert says in err
    code, out, _ = call("audit", log.folder, "--json")
    assert (code, json.loads(out)["verified"]) == (4, False)


@pytest.mark.parametrize("way", ["the last two removed", "text at the end", "all of it made anew", "all removed"])
def test_nothing_is_added_to_a_log_with_another_end(log, way) -> None:
    """And what would have been logged is not done."""
    (log.folder / LOG).write_bytes(b"".join(BROKEN[way][0](lines_of(log))))
    before = (log.folder / LOG).read_bytes()
    with pytest.raises(TrustError, match="does not end as it was written, so nothing is added"):
        log.append("run", what=log.folder)
    assert (log.folder / LOG).read_bytes() == before
    assert call("keygen", log.folder / "key")[0] == 4
    assert not (log.folder / "key").exists()


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_line_that_a_kill_cut_off_is_there_all_the_same(log, kept) -> None:
    """It is in the head, which is written first: it counts, and the next writer completes it where it belongs."""
    whole = lines_of(log)
    (log.folder / LOG).write_bytes(b"".join(whole[:-1]) + whole[-1][:kept])
    assert [entry["did"] for entry in log.entries()] == ["audit begun", "run", "sign", "pack"]
    log.append("unpack", what=log.folder)
    assert lines_of(log)[:4] == whole
    assert [entry["line"] for entry in log.entries()] == [1, 2, 3, 4, 5]


KILLED = """
import os, signal, sys
from pathlib import Path
from compressor.trust.audit import AuditLog
at, seen = int(sys.argv[2]), 0
def point():
    global seen
    seen += 1
    if seen == at:
        os.kill(os.getpid(), signal.SIGKILL)
for name in ("fsync", "replace", "open"):
    def wrapped(*given, _call=getattr(os, name), **named):
        point()
        found = _call(*given, **named)
        point()
        return found
    setattr(os, name, wrapped)
for _ in range(3):
    AuditLog(Path(sys.argv[1])).append("run", what=Path(sys.argv[1]))
    print("done", flush=True)
"""


@pytest.mark.slow
def test_a_writer_killed_at_every_point_leaves_a_whole_log(log) -> None:
    """Whatever it had said is done is there, no line is torn, and the next writer goes on."""
    lines, at = 4, 0
    while True:
        at += 1
        done = subprocess.run([sys.executable, "-c", KILLED, log.folder, str(at)], capture_output=True, text=True)
        found = list(log.entries())
        assert len(found) >= lines + done.stdout.count("done")
        assert len(found) <= lines + done.stdout.count("done") + 1
        lines = len(found)
        if done.returncode == 0:
            break
    assert at > 20


def test_writers_side_by_side_lose_nothing(log) -> None:
    """Threads with a log each, as pages of the studio have, and another process: every entry has a line of its own."""
    program = "import sys; from pathlib import Path; from compressor.trust.audit import AuditLog\n"
    program += "for _ in range(5): AuditLog(Path(sys.argv[1])).append('there', what=Path())"
    with subprocess.Popen([sys.executable, "-c", program, log.folder]) as other:
        threads = [
            threading.Thread(target=lambda: [AuditLog(log.folder).append("here", what=Path()) for _ in range(5)])
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert other.wait(30) == 0
    did = [entry["did"] for entry in log.entries()]
    assert (did.count("here"), did.count("there"), len(did)) == (15, 5, 24)


def test_commands_write_before_and_after(tmp_path, monkeypatch) -> None:
    """Who, what, where, how it ended, and the digest of what came of it; the words as they were typed."""
    runs = tmp_path / "runs"
    assert call("audit", runs, "--begin")[0] == 0
    assert call("keygen", runs / "keys", "--kind", "p256")[0] == 0
    assert call("keygen", runs / "keys")[0] == 2
    began, made, done, again, refused = AuditLog(runs).entries()
    assert began["did"] == "audit begun"
    assert (made["did"], made["what"]) == ("keygen", "keys")
    assert made["facts"]["given"] == [str(runs / "keys"), "--kind", "p256"]
    assert done["facts"] == {"of line": 2, "exit code": 0, "sha256": {"keys": sha256((runs / "keys").read_bytes())}}
    assert (again["facts"]["given"], refused["facts"]["exit code"]) == ([str(runs / "keys")], 2)
    if os.name == "posix":
        monkeypatch.setenv("LOGNAME", "somebody")
        assert made["by"]["number"] == os.getuid()
        assert AuditLog(runs).append("x", what=runs)["by"]["user"] == made["by"]["user"]
    code, out, _ = call("audit", runs, "--last", 1)
    assert code == 0
    assert out.splitlines()[0].split()[0] == "6"
    assert "6 lines, each as it was written, the newest is" in out


def test_signing_is_written_down(signed, keys) -> None:
    """With the digests of the manifest and the signature, so that an entry says what it was about."""
    AuditLog.begin(signed.parent)
    assert call("sign", signed, "--key", keys / "release", "--name", "digits", "--release", 3)[0] == 0
    entries = list(AuditLog(signed.parent).entries())
    assert [entry["did"] for entry in entries] == ["audit begun", "sign", "sign ended"]
    assert set(entries[2]["facts"]["sha256"]) == {"manifest.json", "signature.json"}
    assert call("verify", signed)[0] == 0
    assert len(list(AuditLog(signed.parent).entries())) == 3  # who looks changes nothing


def test_changes_of_the_studio_say_whose_session_asked(log) -> None:
    """With the role, and without the cookie; where no log was begun nothing is written."""
    session = Session(cookie="secret", role=Role.VIEWER, csrf="word")
    logged(log.folder, session, "refused: run")
    entry = list(log.entries())[-1]
    assert (entry["did"], entry["by"]["role"], entry["by"]["session"]) == (
        "studio refused: run",
        "viewer",
        session.name,
    )
    assert "secret" not in (log.folder / LOG).read_text()
    logged(log.folder.parent, session, "undo")
    assert "(viewer " in call("audit", log.folder)[1]


def test_a_digest_that_was_noted_must_be_there(log) -> None:
    """It is what shows that a log was made anew as a whole, head and all."""
    newest = list(log.entries())[-1]["sha256"]
    assert call("audit", log.folder, "--holds", newest.upper())[0] == 0
    made = remade(lines_of(log), 1, did="nothing")
    (log.folder / LOG).write_bytes(b"".join(made))
    head = json.loads((log.folder / HEAD).read_text())
    del head["sha256"]
    write_sealed(log.folder / HEAD, {**head, "bytes": sum(map(len, made)), "last": made[-1].decode()})
    assert len(list(log.entries())) == 4
    code, _, err = call("audit", log.folder, "--holds", newest)
    assert code == 4
    assert "it was made anew or cut off" in err


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b"\xff"])
def test_a_head_that_is_gone_or_damaged_is_told(log, content) -> None:
    """Nothing is added then, and the log does not count as none."""
    path = log.folder / HEAD
    path.unlink() if content is None else path.write_bytes(content)
    assert call("audit", log.folder)[0] == 4
    assert call("keygen", log.folder / "key")[0] == 4
    assert not (log.folder / "key").exists()


def test_where_logs_are_found(log, tmp_path, monkeypatch) -> None:
    """The nearest above, also behind a link; the one that the environment names, which must be there; else none."""
    assert log_above(log.folder / "a/b/c") == log_above(log.folder) == log
    assert log_above(tmp_path) is None
    (tmp_path / "link").symlink_to(log.folder)
    assert log_above(tmp_path / "link/x") == AuditLog(tmp_path / "link")
    (log.folder / "deep").mkdir()
    (tmp_path / "deep").symlink_to(log.folder / "deep")
    assert log_above(tmp_path / "deep/x") == log
    monkeypatch.setenv(VARIABLE, str(log.folder))
    assert log_above(tmp_path / "elsewhere") == log
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(WrongUseError, match="where no log was begun"):
        log_above(log.folder)
    assert call("keygen", tmp_path / "key")[0] == 2
    monkeypatch.delenv(VARIABLE)
    (tmp_path / LOG).write_text('{"did": "of another program"}\n')
    assert log_above(tmp_path / "x") is None


def test_what_cannot_be_begun(log, made, tmp_path) -> None:
    """A second log, one in the folder of a run, and a log that is none."""
    assert call("audit", log.folder, "--begin")[0] == 2
    code, _, err = call("audit", made, "--begin")
    assert code == 2
    assert f"give the folder above it, {made.parent}" in err
    assert call("audit", tmp_path / "none")[0] == 2
    (tmp_path / "file").write_text("")
    code, _, err = call("audit", tmp_path / "file", "--begin")
    assert code == 1
    assert "file is no folder; move it away" in err


@pytest.mark.skipif(os.name != "posix", reason="links and rights of POSIX")
def test_the_log_is_no_way_to_other_files(log, tmp_path) -> None:
    """A link in its place is not followed; its rights are the umask's."""
    assert (log.folder / LOG).stat().st_mode & 0o777 == 0o666 & ~_umask()
    theirs = tmp_path / "theirs"
    theirs.write_bytes((log.folder / LOG).read_bytes())
    (log.folder / LOG).unlink()
    (log.folder / LOG).symlink_to(theirs)
    before = theirs.read_bytes()
    with pytest.raises((WriteError, TrustError)):
        log.append("run", what=log.folder)
    assert theirs.read_bytes() == before
    with pytest.raises(TrustError, match="cannot be read"):
        list(log.entries())


def test_a_log_that_is_held_is_waited_for_and_told(log, monkeypatch) -> None:
    """By a process that hangs: a sentence after some seconds, and nothing is done meanwhile."""
    monkeypatch.setattr(audit, "_WAIT_SECONDS", 0.05)
    with log._held(), pytest.raises(WriteError, match="held by another process"):
        AuditLog(log.folder).append("run", what=log.folder)


def test_long_facts_do_not_make_long_lines(log) -> None:
    """What does not fit is told by its length."""
    entry = log.append("run", what=log.folder, facts={"given": "x" * 100_000, "odd": float("nan")})
    assert entry["facts"] == {"left out": 100_023}
    assert len(list(log.entries())) == 5


def _umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before
