"""The benchmark of trust on a tiny budget: whatever is done to a signed folder is told."""

import pytest

from benchmarks.trust import attacks


def test_a_tiny_budget(tmp_path) -> None:
    """Every flip and every move is told, the older release refused, no kill leaves what can be read."""
    pytest.importorskip("cryptography", reason="keys need it: pip install .[trust]")
    found = attacks.measured(tmp_path, count=40, killed=4, megabytes=2)
    assert found["flips"] == {"made": 40, "told": 40}
    assert found["moves"] == dict.fromkeys(("removed", "added", "renamed", "swapped", "linked", "unsigned"), True)
    assert found["replay_refused"]
    assert found["kills"]["wrong"] == 0
    assert {*found["costs"]} == {"megabytes", "sha256sum", "verify", "decrypt"}
    assert all(found["costs"][name]["mebibytes"] > 1 for name in ("sha256sum", "verify", "decrypt"))
