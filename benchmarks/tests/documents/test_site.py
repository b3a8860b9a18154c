"""The site of the pages asks no network."""

from benchmarks.documents.site import remote_parts


def test_a_site_that_asks_a_network_is_refused(tmp_path):
    """A script, style or picture of another host is named; a link that a person may follow is none."""
    (tmp_path / "a.html").write_text('<a href="https://example.org">there</a><script src="local.js"></script>')
    assert remote_parts(tmp_path) == []
    (tmp_path / "b.html").write_text(
        '<link rel="stylesheet" href="https://fonts.example/x.css"><img src="//cdn.example/y.png">'
    )
    (tmp_path / "c.css").write_text("@import url(https://fonts.example/z.css); a { background: url('http://x/y') }")
    assert [part.partition(": ")[2] for part in remote_parts(tmp_path)] == [
        "https://fonts.example/x.css", "//cdn.example/y.png", "https://fonts.example/z.css", "http://x/y",
    ]  # fmt: skip
