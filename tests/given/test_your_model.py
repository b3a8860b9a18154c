"""The nine tutorials run as they stand, and docs/your_model.md has the lines of each that mention the package."""

import re
import warnings
from pathlib import Path

import pytest

from compressor.given.notices import WorkloadWarning
from compressor.running.pipeline import PipelineWarning
from workbench import ROOT

DOCS = ROOT / "docs"
CASES = dict(
    re.findall(
        r"^## (.*?)\n```python\n(.*?)```",
        (DOCS / "your_model.md").read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
)
# The tutorial of each case, and the metric that its report names.
TUTORIALS = {
    "A CNN on arrays": ("cnn", "accuracy"),
    "Hugging Face, batches that are dicts": ("hugging_face", "accuracy"),
    "Tabular regression": ("tabular", "r2"),
    "An LSTM": ("lstm", "macro_f1"),
    "A U-Net, judged by mIoU": ("segmentation", "miou"),
    "A detector with several outputs": ("detection", "map50"),
    "A DataLoader and a metric of your own": ("loaders", "within_one"),
    "An ONNX file": ("onnx_file", "accuracy"),
    "Several labels at once": ("multi_label", "multilabel_f1"),
}


def blocks(name: str) -> list[str]:
    page = (DOCS / "tutorials" / f"{name}.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def test_all_nine_are_there() -> None:
    """The page, the tutorials and this test know the same cases."""
    assert set(CASES) == set(TUTORIALS)
    assert len(CASES) == 9
    assert {path.stem for path in (DOCS / "tutorials").glob("*.md")} == {name for name, _ in TUTORIALS.values()}


@pytest.mark.parametrize("case", TUTORIALS)
def test_a_case_is_a_few_lines_of_its_tutorial(case: str) -> None:
    """At most twelve lines of code, the very ones of the tutorial, which also begins with what one ends with."""
    name, _ = TUTORIALS[case]
    assert len([line for line in CASES[case].splitlines() if line.strip()]) <= 12
    assert CASES[case] in blocks(name)
    assert (
        (DOCS / "tutorials" / f"{name}.md").read_text(encoding="utf-8").split("\n\n")[1].startswith("**You end with**")
    )


@pytest.mark.parametrize("case", TUTORIALS)
def test_a_tutorial_runs(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block after block: a file, a score of the named metric that says more than chance, and a report come of it."""
    monkeypatch.chdir(tmp_path)
    name, metric = TUTORIALS[case]
    names: dict = {"__name__": name}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WorkloadWarning)
        warnings.simplefilter("ignore", PipelineWarning)
        warnings.simplefilter("ignore", FutureWarning)  # of torch's exporter, which a page calls itself
        for block in blocks(name):
            exec(compile(block, f"{name}.md", "exec"), names)
    result = names["result"]
    assert result.artifact.path.stat().st_size > 0
    assert result.report.workload["metric"] == metric
    score = result.report.shipped.measurement.score
    assert score.low <= score.value <= score.high
    assert score.value > 0.6  # no guess reaches it in any of the nine
    assert (result.artifact.path.parent / "report.html").exists()
    if name == "onnx_file":
        assert names["unscored"].report.workload["metric"] == "not scored"
    if name == "detection":
        assert any("map" in warning and "not scored" in warning for warning in result.report.warnings)
