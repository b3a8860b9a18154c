"""Results in notebooks and data frames: short, escaped, and with the numbers of the report."""

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch import nn

from compressor.comparing.comparison import Comparison
from compressor.errors import WrongUseError
from compressor.estimate import Estimate
from compressor.report.comparison import ComparisonRow
from compressor.report.notebook import flat, step_rows
from compressor.report.view import summary
from compressor.running.run import Artifact, Result
from workbench.report_samples import rollback

REPORT = rollback()


def _comparison() -> Comparison:
    one = Estimate(1.0, 0.5, 1.5)
    row = ComparisonRow(
        name="<b>int8</b>", score=one, drop=None, latency_ms=one, speedup=one, size_bytes=2048, compressed_bytes=1024,
        seconds=2.0, pareto=True, report=None,
    )  # fmt: skip
    return Comparison(workload="mine", rows=(row,), reports={"int8": REPORT}, failures={"prune": "no & <way>"})


def test_one_line_says_what_it_is(tmp_path: Path) -> None:
    """No record of a run fills a screen because somebody typed its name."""
    result = Result(report=REPORT, artifact=Artifact(tmp_path / "model.onnx"), model=nn.Identity())
    assert repr(REPORT).endswith(f": {summary(REPORT)}>")
    assert repr(result) == f"<Result in {tmp_path}: {summary(REPORT)}>"
    assert repr(_comparison()) == "<Comparison on mine of int8, 1 failed>"
    assert all("\n" not in repr(each) for each in (REPORT, result, _comparison()))


def test_notebooks_show_a_table(tmp_path: Path) -> None:
    """A row a step, and nothing of a name is markup."""
    odd = replace(REPORT, steps=(replace(REPORT.steps[0], stage="<script>"), *REPORT.steps[1:]))
    page = Result(report=odd, artifact=Artifact(tmp_path / "model.onnx"), model=nn.Identity())._repr_html_()
    assert page.count("<tr>") == 1 + len(odd.steps)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    page = _comparison()._repr_html_()
    assert "&lt;b&gt;int8&lt;/b&gt;" in page
    assert "prune failed: no &amp; &lt;way&gt;" in page


def test_rows_hold_the_numbers_of_the_report() -> None:
    """Estimates as three columns; a step that was not measured has none of them."""
    rows = step_rows(REPORT)
    measured = REPORT.shipped.measurement
    row = rows[REPORT.final]
    assert (row["speedup"], row["speedup_low"], row["speedup_high"]) == tuple(vars(measured.speedup).values())
    assert [each["stage"] for each in rows] == [step.stage for step in REPORT.steps]
    assert sum(each["ships"] for each in rows) == 1
    assert flat({"a": Estimate(1.0, 0.0, 2.0), "b": None}) == {"a": 1.0, "a_low": 0.0, "a_high": 2.0, "b": None}
    skipped = replace(REPORT, steps=(*REPORT.steps, replace(REPORT.steps[-1], measurement=None)))
    assert "speedup" not in step_rows(skipped)[-1]


@pytest.mark.skipif(find_spec("pandas") is None, reason="pandas is an extra, and not installed here")
@pytest.mark.filterwarnings("ignore")  # other people's packages warn of each other
def test_frames() -> None:
    """What pandas makes of the rows."""
    found = REPORT.to_frame()
    assert list(found["stage"]) == [step.stage for step in REPORT.steps]
    assert found["speedup"].iloc[REPORT.final] == REPORT.shipped.measurement.speedup.value
    compared = _comparison().to_frame()
    assert list(compared["name"]) == ["<b>int8</b>"]
    assert compared["speedup_high"].iloc[0] == 1.5
    assert "scale" not in compared


def test_without_pandas_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    for thing in (REPORT, _comparison()):
        with pytest.raises(WrongUseError, match=r'pip install "torch-compressor\[frame\]"'):
            thing.to_frame()
