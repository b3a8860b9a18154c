"""The benchmark of trust on a tiny budget: whatever is done to a signed folder is told."""

import random
from typing import Any

import pytest

from benchmarks.trust import attacks, kills, mutants
from compressor.errors import TrustError


def test_a_tiny_budget(tmp_path) -> None:
    """Every flip and every move is told, the older release refused, no kill leaves what can be read."""
    pytest.importorskip("cryptography", reason="keys need it: pip install .[trust]")
    place = attacks.with_keys(tmp_path)
    found = attacks.measured(place, count=40, killed=2, megabytes=1)
    found |= attacks.priced(place, megabytes=1, times=1)
    assert found["flips"] == {"made": 40, "told": 40, "untold": 0}
    assert found["moves"] == dict.fromkeys(("removed", "added", "renamed", "swapped", "linked", "unsigned"), True)
    assert found["replay_refused"]
    assert found["secrets"]["wrong"] == 0
    assert found["moves_untold"] == 0
    ours, costs = ("verify", "decrypt", "both"), found["costs"]
    assert costs["most_mebibytes"] == max(costs[name]["mebibytes"] for name in ours)
    assert all(
        costs[name][fact] > 0 for name in ("sha256sum", *ours) for fact in ("cpu_seconds", "seconds", "mebibytes")
    )


def test_what_readers_do_is_counted(monkeypatch) -> None:
    """Refused, read, read as something else, an error of another type, and files that never end, also elsewhere."""

    def read(chance: random.Random) -> bool:
        way = chance.choice([TrustError("no"), KeyError("x"), None, False, True])
        if isinstance(way, Exception):
            raise way
        if way is None:
            while True:
                pass
        return bool(way)

    found = mutants.counts_of(read, files=40, seed=0, seconds=0.02)
    counts = [found[name] for name in ("refused", "untyped", "hangs", "read", "other")]
    assert sum(counts) == 40
    assert all(counts)
    assert any("KeyError" in odd for odd in found["odd"])
    spent = iter(range(0, 100, 10))
    monkeypatch.setattr(mutants, "_computed", lambda: next(spent))
    elsewhere = mutants.counts_of(lambda _: False, files=2, seed=0)
    assert (elsewhere["read"], elsewhere["hangs"], elsewhere["slowest_s"]) == (0, 2, 10)
    assert mutants.summed({"a": found, "b": found})["files"] == 80


def test_a_command_is_killed_at_every_write_point(tmp_path) -> None:
    """Each point once, with what was there whole; then it ends, and its file is that of one that nobody killed."""
    pytest.importorskip("cryptography", reason="keys need it: pip install .[trust]")
    out = tmp_path / "out"
    out.mkdir()

    def intact() -> bool:
        return not (out / "key").exists() or (out / "key").read_bytes().startswith(b"-----BEGIN")

    tried = kills.Tried(["trust", "list", "--store", str(out / "none")], intact, lambda: None)
    with pytest.raises(SystemExit, match="trust ended with 2"):
        kills.at_every_point(tried, tmp_path)
    (tmp_path / "plain").write_bytes(b"content" * 1000)
    kills.generate(tmp_path / "x25519", kills.Kind.X25519)
    sealed = out / "sealed"

    def content() -> bytes:
        return kills.decrypted(sealed, kills.read_private(tmp_path / "x25519"))

    command = ["encrypt", str(tmp_path / "plain"), "--to", str(tmp_path / "x25519.pub"), "--out", str(sealed)]
    whole = kills.Tried(command, lambda: not sealed.exists() or content() == b"content" * 1000, content)
    assert kills.at_every_point(whole, tmp_path) >= 3
    assert content() == b"content" * 1000
    lost = kills.Tried(command, lambda: False, content)
    (tmp_path / "seen").unlink()
    with pytest.raises(SystemExit, match="encrypt ended with -9"):
        kills.at_every_point(lost, tmp_path)


def test_a_command_is_killed_at_random_as_often_as_wanted(tmp_path, monkeypatch) -> None:
    """One that ended in time is given again from the beginning, which another round needs; it ends in the end."""
    ends = iter([0, -9, 0, -9, -9, 0])
    monkeypatch.setattr(kills, "ended", lambda *_, **__: next(ends))
    began = []
    tried = kills.Tried(["pack"], lambda: True, lambda: None, lambda: began.append(1))
    assert kills.at_random(tried, tmp_path, count=3, whole=1.0, chance=random.Random(0)) == 3  # noqa: S311 - moments, no secrets
    assert len(began) == 2
    assert next(ends, None) is None


def test_what_is_known_of_write_points_stays_and_moments_are_added(tmp_path, monkeypatch) -> None:
    """A row of 60 points and 4 moments lacks 6 of a quarter of 40; one of 4 points and 36 moments lacks none."""
    asked = []

    def at_random(*_: Any, count: int, **__: Any) -> int:
        asked.append(count)
        return count

    monkeypatch.setattr(kills, "at_random", at_random)
    monkeypatch.setattr(kills, "at_every_point", None)
    monkeypatch.setattr(kills, "ended", lambda *_, **__: 0)
    tried = kills.Tried(["run"], lambda: True, lambda: 1)
    known = {"kills": 64, "points": 60, "lost": 0, "other": 0}
    found = kills.of_one(lambda _: tried, tmp_path, count=40, chance=random.Random(0), known=known)  # noqa: S311 - moments, no secrets
    assert asked == [6]
    assert found == {"kills": 70, "points": 60, "lost": 0, "other": 0}
    assert kills.at_moments(40, {"points": 4}) == 36
