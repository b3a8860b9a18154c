"""What the coverage-guided fuzzer watches: `make fuzz-guided` runs it."""

from benchmarks.trust import guided
from workbench import ROOT


def test_what_reads_is_watched_and_exists() -> None:
    for name in guided._WATCHED:
        path = ROOT.joinpath(*name.split("."))
        assert path.is_dir() or path.with_suffix(".py").exists(), name
    unwatched = {*guided.unwatched()}
    assert {"compressor", "compressor.files.export"} <= unwatched
    assert not {"compressor.trust", "compressor.trust.manifest", "compressor.structure.checkpoint"} & unwatched
