"""What reports say, and what they refuse to say."""

import base64
import hashlib
import io
import json
import math
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from compressor.errors import StorageError
from compressor.estimate import Estimate
from compressor.machine import environment
from compressor.notes.running import GivenFile
from compressor.report.asked import asked_and_got, ranking_of_blocks
from compressor.report.charts import BAR_WIDTH, Item, dot_chart, nice_ticks
from compressor.report.comparison import (
    ComparisonRow,
    comparison_html,
    comparison_markdown,
    comparison_svg,
    conclusions,
    pareto_front,
    print_comparison,
)
from compressor.report.figures import waterfall
from compressor.report.html import html
from compressor.report.numbers import ScoreScale, claim, duration, si, size, smaller
from compressor.report.record import Step, describe_workload
from compressor.report.report import Report, write_report
from compressor.report.scatter import Point, label_area, overlap, panel, place_labels, staircase
from compressor.report.sections import other_details
from compressor.report.text import markdown
from compressor.report.view import budget_lines, summary, table
from compressor.storage import json_safe
from compressor.target import Isa, Target
from workbench import ROOT
from workbench.report_samples import (
    ALL,
    DISTILL,
    DROP,
    ENVIRONMENT,
    PRUNE,
    QUANTIZE,
    REFERENCE,
    SHARED,
    SPARSE,
    THINNER,
    WORKLOAD,
    hostile,
    measurement,
    nothing_kept,
    regression,
    rollback,
)

SCHEMA = json.loads((ROOT / "docs" / "report_schema.json").read_text(encoding="utf-8"))
_TYPES = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int,
    "number": (int, float),
}  # fmt: skip


def violations(value, schema, where="report"):
    """What of `value` breaks `schema`: the part of JSON Schema that docs/report_schema.json uses."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    found = []
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    allowed = tuple(_TYPES[kind] for kind in kinds)
    is_flag = isinstance(value, bool)  # which Python takes for a number, and JSON does not
    if kinds and not ("boolean" in kinds if is_flag else isinstance(value, allowed)):
        return [f"{where}: {value!r} is not {kinds}"]
    if "const" in schema and value != schema["const"]:
        found.append(f"{where}: {value!r} is not {schema['const']!r}")
    if "minimum" in schema and value < schema["minimum"]:
        found.append(f"{where}: {value!r} is below {schema['minimum']}")
    for part in schema.get("allOf", []):
        found += violations(value, part, where)
    options = schema.get("anyOf")
    if options and all(violations(value, option, where) for option in options):
        found += violations(value, options[0], where)
    if isinstance(value, dict):
        found += [f"{where}: no {key}" for key in schema.get("required", []) if key not in value]
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        for key, entry in value.items():
            if key in known:
                found += violations(entry, known[key], f"{where}.{key}")
            elif others is False:
                found.append(f"{where}: {key} is not known")
            elif isinstance(others, dict):
                found += violations(entry, others, f"{where}.{key}")
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            found.append(f"{where}: too short")
        for number, entry in enumerate(value):
            found += violations(entry, schema.get("items", {}), f"{where}[{number}]")
    return found


def printed(report: Report, width: int) -> str:
    """What `report.print` shows on a terminal of `width` columns."""
    stream = io.StringIO()
    report.print(Console(file=stream, width=width))
    return stream.getvalue()


class Page(HTMLParser):
    """The elements, their attributes, and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_report_json_keeps_to_its_schema() -> None:
    """The report of a run has every key of the documented schema, with values of the promised types."""
    assert violations(rollback().to_json(), SCHEMA) == []
    assert violations(nothing_kept().to_json(), SCHEMA) == []


def test_the_schema_catches_what_is_wrong() -> None:
    """The structural check is not blind: a missing key, a wrong type and an unknown number are all reported."""
    broken = rollback().to_json()
    del broken["seed"]
    broken["steps"][1]["kept"] = "yes"
    broken["steps"][2]["measurement"]["score"]["median"] = 1
    found = "; ".join(violations(broken, SCHEMA))
    assert "no seed" in found
    assert "steps[1].kept" in found
    assert "median is not known" in found


def test_report_json_round_trip() -> None:
    """A report that was written and read again is the same report."""
    report = rollback()
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_another_schema_version_is_refused() -> None:
    """A file of a later layout is refused with its version, instead of being read wrongly."""
    with pytest.raises(StorageError, match="schema_version 1, got 2"):
        Report.from_json({**rollback().to_json(), "schema_version": 2})


@pytest.mark.parametrize(
    "changed",
    [
        {"steps": None}, {"steps": 5}, {"steps": []}, {"steps": [None]}, {"steps": [{}]}, {"final": "last"},
        {"final": 99}, {"final": float("inf")}, {"seed": "none"}, {"target": 5}, {"recipe": "int8"}, {"warnings": 3},
    ],
    ids=str,
)  # fmt: skip
def test_a_report_of_another_layout_is_refused(changed: dict[str, Any]) -> None:
    """A field that is missing or of another kind is one typed error, as is a text that is no report at all."""
    with pytest.raises(StorageError, match="not laid out as this version writes it"):
        Report.from_json({**rollback().to_json(), **changed})
    for other in (None, [], "report"):
        with pytest.raises(StorageError, match="schema_version 1, got None"):
            Report.from_json(other)  # type: ignore[arg-type]  # that is what is tested


def test_final_must_be_a_step() -> None:
    """A report cannot point to a step that does not exist."""
    with pytest.raises(ValueError, match="one of the 1 steps, got 3"):
        Report(workload={}, environment={}, steps=(REFERENCE,), final=3)


def test_numbers_that_json_cannot_hold_do_not_lose_the_report(tmp_path: Path) -> None:
    """An infinite error and a NaN loss at the end of a long run still leave three readable files."""
    infinite = Step(
        stage="quantize",
        kept=False,
        seconds=1.0,
        measurement=REFERENCE.measurement
        and type(REFERENCE.measurement)(**{**vars(REFERENCE.measurement), "score": Estimate(math.inf, 1.0, math.inf)}),
        details={"epochs": [{"epoch": 1, "loss": math.nan}], "tensor": torch.tensor([1.0, math.inf])},
    )
    report = Report(workload={}, environment={}, steps=(REFERENCE, infinite), final=0)
    write_report(report, tmp_path)
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["steps"][1]["measurement"] is None
    assert saved["steps"][1]["details"] == {"epochs": [{"epoch": 1, "loss": None}], "tensor": [1.0, None]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]


def test_json_safe_knows_what_stages_write() -> None:
    """Tuples, enums, paths and keys that are not text become JSON; text and whole numbers stay as they are."""
    assert json_safe({1: (Isa.GENERIC, Path("a")), "n": 3, "t": True}) == {"1": ["generic", "a"], "n": 3, "t": True}


@pytest.mark.parametrize("sample", ALL)
@pytest.mark.parametrize("width", [200, 100, 72])
def test_the_terminal_table_fits(sample, width: int) -> None:
    """No line is wider than the terminal, down to 72 columns, whatever the names are."""
    text = printed(sample(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text


def test_the_terminal_table_says_why_a_stage_was_rolled_back() -> None:
    """A rolled-back stage is marked, its reason stands on the line below, and the sentence ends the table."""
    lines = printed(rollback(), 120).splitlines()
    row = next(number for number, line in enumerate(lines) if line.startswith("✗ prune_channels"))
    assert lines[row + 2].strip().startswith("rolled back: slower: 0.94x [0.91, 0.97]")
    assert "model.onnx: 6.1x faster [5.9, 6.3], 11.8x smaller, accuracy 89.4 % (-0.5 points [-0.9, 0.0])" in lines


def test_narrow_terminals_lose_columns_not_digits() -> None:
    """At 100 columns MACs go first; score, latency, speed-up and size stay whole."""
    narrow, wide = printed(rollback(), 100), printed(rollback(), 200)
    assert "MACs" in wide
    assert "MACs" not in narrow
    for part in ("[88.9, 89.9]", "0.538 ms", "[5.9, 6.3]", "11.8x smaller"):
        assert part in narrow


@pytest.mark.parametrize("width", [80, 72, 60])
def test_the_change_of_the_score_is_the_last_column_to_go(width: int) -> None:
    """At 80 columns score, change, speed-up and size are there, and at 60 the score has gone before its change."""
    shown = printed(rollback(), width)
    assert "[-0.9, 0.0]" in shown
    assert "[5.9, 6.3]" in shown
    assert ("[88.9, 89.9]" in shown) == (width >= 72)


def test_one_number_a_fact() -> None:
    """The speed-up of the file that ships is the same, digit for digit, in its row, in the sentence and on the page."""
    report = rollback()
    row = table(report)[-1].cells["speedup"]
    assert (row.text, row.note) == ("6.1x", "[5.9, 6.3]")
    assert "6.1x faster [5.9, 6.3]" in summary(report)
    assert "6.10" not in report.to_html() + report.to_markdown() + printed(report, 200)


def test_a_stage_that_changes_values_alone_gets_no_credit_for_time() -> None:
    """Its time was measured again: "as before" in the row, no ghost of a bar in the chart, and none is left to others.

    The bar before quantize reaches to what drop_blocks left, 1.36 ms, not to the 1.34 that were measured after distill.
    """
    report = rollback()
    row = table(report)[3]
    assert row.stage == "distill"
    assert (row.cells["speedup"].text, row.cells["speedup"].note) == ("2.44x", "as before")
    marks = waterfall(report, ScoreScale())[0].marks
    assert marks[3].before is None
    assert marks[3].text == "1.340 ms, as before"
    assert marks[4].before == marks[1].x
    proved = replace(DISTILL, details={**DISTILL.details, "versus_base": {"value": 1.2, "low": 1.1, "high": 1.3}})
    other = table(replace(report, steps=(*report.steps[:3], proved, report.steps[4])))[3]
    assert other.cells["speedup"].note == "[2.38, 2.50]"


def test_what_was_asked_stands_beside_what_was_got() -> None:
    """remove=0.4 and 12 % removed, with the reason: in terminal, Markdown and HTML."""
    kept = replace(PRUNE, kept=True, reason="", pays=True)
    report = Report(workload=WORKLOAD, environment=ENVIRONMENT, steps=(REFERENCE, DROP, kept), final=2)
    sentence = "sked for 40 % of the channels, removed 12 %: widths stay multiples of 4 (align), and align: 1 rounds"
    for text in (
        report.to_markdown().replace("\\", ""),
        Page(report.to_html()).text,
        " ".join(printed(report, 200).split()),
    ):
        assert sentence in text.replace("\\`", "`").replace("`", "")
        assert "sked for 50 % of the blocks, dropped 1 of 2 (50 %)" in text


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (replace(PRUNE, parameters={"remove": 0.125}), "asked for 12 % of the channels, removed 12 %"),
        (replace(PRUNE, parameters={"target": {"latency": {"fraction": 0.5}}}), ""),
        (replace(PRUNE, parameters={"remove": True}), ""),
        (
            replace(SPARSE, details={"zero_weights": [], "zero_weights_fraction": 0.7}, parameters={"sparsity": 0.8}),
            "asked for 80 % of the weights, made 70 % zero",
        ),
        (
            replace(
                PRUNE,
                parameters={},
                details={
                    "target": {"target": "Latency(0.5)", "unit": "ms", "reference": 2.0, "start": 2.0, "limit": 1.0}
                    | {"predicted": 0.98, "measured": 1.1, "measured_low": 1.0, "measured_high": 1.2}
                    | {"fraction_of_reference": 0.55}
                },
            ),
            "asked for at most 1 ms, got 1.1 ms (55 % of the reference's)",
        ),
    ],
)
def test_amounts_of_every_kind(step: Step, said: str) -> None:
    """Channels, weights and targets; where nothing is asked as a number, nothing is said."""
    assert "; ".join(asked_and_got(step)) == said


def test_blocks_of_several_groups_say_how_they_are_ranked() -> None:
    """Scores of two groups do not compare where each has a ranking of its own, and do in the scope Global."""
    blocks = [
        {"block": f"{group}.{index}", "score": 0.1, "kept": bool(index), "group": group}
        for group in ("layer1", "layer2")
        for index in range(3)
    ]
    within = replace(DROP, parameters={"remove": 0.5, "scope": {"per_group": {}}}, details={"blocks": blocks})
    across = replace(within, parameters={"remove": 0.5, "scope": {"global": {}}})
    assert ranking_of_blocks(within) == "Blocks are ranked within a group: scores of different groups do not compare."
    assert "across all groups" in ranking_of_blocks(across)
    assert ranking_of_blocks(DROP) == ""
    assert asked_and_got(within) == [
        "asked for 50 % of the blocks, dropped 2 of 6 (33 %): whole blocks go, within each group"
    ]
    report = Report(workload=WORKLOAD, environment=ENVIRONMENT, steps=(REFERENCE, within), final=1)
    for text in (report.to_markdown(), Page(report.to_html()).text, printed(report, 200)):
        assert "scores of different groups do not compare" in text


def test_what_is_judged_later_is_no_success_yet() -> None:
    """A model just cut, at 25 % accuracy, is kept for now and judged after distill; without a budget nothing judges."""
    report = rollback()
    assert (table(report)[1].state, table(report)[1].outcome) == ("for_now", "kept for now, judged after distill")
    for text in (report.to_markdown(), Page(report.to_html()).text, printed(report, 100)):
        assert "kept for now, judged after distill" in text
    assert 'class="chip for_now"' in report.to_html()
    assert table(replace(report, budget=None))[1].outcome == "kept, distill follows"


def test_a_budget_met_by_the_reference_says_so() -> None:
    """Where nothing was kept, no form says merely that the budget is met."""
    report = replace(nothing_kept(), budget={"max_drop": 0.01}, budget_met=True)
    for text in (report.to_markdown(), Page(report.to_html()).text, " ".join(printed(report, 100).split())):
        assert "met by the reference as it is: no stage was kept, so nothing is gained" in text
    assert "Nothing kept, budget met" in report.to_html()


def test_bytes_thrown_away_for_time_name_the_setting_that_keeps_them() -> None:
    """A budget with not_slower: false says what that means."""
    lines = budget_lines({"not_slower": False}, ScoreScale())
    assert lines == ["stages that make the file slower may stay (not_slower: false): bytes count, time does not"]
    assert "<code>not_slower: false</code>" in nothing_kept().to_html()


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((1.3, 1.2, 1.4), "faster"),
        ((1.02, 0.97, 1.06), "same"),
        ((0.9, 0.8, 0.95), "slower"),
        ((1.01, 1.001, 1.02), "same"),
    ],
)
def test_a_speedup_is_claimed_only_beyond_its_interval(interval, said: str) -> None:
    """An interval that contains 1, or touches it at the two decimals shown, claims nothing."""
    assert claim(Estimate(*interval)) == said


def test_no_difference_is_never_called_faster() -> None:
    """A file that is smaller but not measurably faster is marked with ~ and the sentence says so."""
    report = regression()
    assert summary(report) == (
        "model.onnx: no difference in speed (~1.02x [0.97, 1.06]), 3.5x smaller, mse 0.0125 (+1.6 % [0.8, 2.0])"
    ).replace("0.0125", "0.01250")
    assert table(report)[1].cells["speedup"].text == "~1.02x"
    for text in (report.to_markdown(), Page(report.to_html()).text, printed(report, 100)):
        # What the stage's own reason says, and the footnote on what "does not pay" means, are no claims of the report.
        assert "faster" not in re.sub(r"2\.53.{1,30}faster|neither faster", "", text)


def test_a_slower_file_is_called_slower() -> None:
    """A speed-up of 0.5 [0.4, 0.8] is 2x slower, between 1.25 and 2.5 times."""
    slow = type(QUANTIZE.measurement)(**{**vars(QUANTIZE.measurement), "speedup": Estimate(0.5, 0.4, 0.8)})
    step = Step(stage="quantize", kept=True, seconds=1, measurement=slow, drop=QUANTIZE.drop)
    report = Report(workload={"metric": "accuracy"}, environment={}, steps=(REFERENCE, step), final=1)
    assert "2.00x slower [1.25, 2.50]" in summary(report)


def test_the_given_file_is_what_a_size_is_compared_with() -> None:
    """Where reading made the file larger, sentence and headline are of the given one; the other ratio is named so."""
    base, last = REFERENCE.measurement.size_bytes, QUANTIZE.measurement.size_bytes
    given = GivenFile(file="sparse.onnx", size_bytes=last // 2)
    reference = replace(REFERENCE, details=given.to_json())
    report = Report(workload={"metric": "accuracy"}, environment={}, steps=(reference, QUANTIZE), final=1)
    ratio = smaller(base, last)
    assert f"2.00x larger than the given file ({ratio} beside it as read)" in summary(report)
    text = Page(report.to_html()).text
    assert "2.00\u00d7 larger" in text
    assert "the given file, " in text
    kept = Report(workload={"metric": "accuracy"}, environment={}, steps=(reference, QUANTIZE), final=0)
    assert re.search("no stage was kept; .*x larger than the given file$", summary(kept))
    same = replace(REFERENCE, details=GivenFile(file="dense.onnx", size_bytes=base).to_json())
    report = Report(workload={"metric": "accuracy"}, environment={}, steps=(same, QUANTIZE), final=1)
    assert "given" not in summary(report)


def test_a_run_that_kept_nothing_ships_its_reference() -> None:
    """Where every stage was rolled back, no gain is named anywhere in the sentence or the headline."""
    report = nothing_kept()
    assert summary(report) == "model.onnx: the reference as it was, no stage was kept"
    assert "Budget not met" in report.to_html()
    assert "not applied" in report.to_html()


def test_a_drop_without_a_paired_interval_shows_none() -> None:
    """Without a paired comparison the change is a plain difference: no interval is made up."""
    cell = table(rollback())[1].cells["change"]
    assert (cell.text, cell.note, cell.tone) == ("-64.9 pt", "", "")


def test_errors_count_in_percent_of_the_reference() -> None:
    """For mse a drop of 0.0163 reads +1.6 %: the error rose; for accuracy 0.005 reads -0.5 points."""
    mse = ScoreScale(name="mse", higher_is_better=False, bounded=False)
    assert mse.change(Estimate(0.25, 0.125, 0.5)) == Estimate(25.0, 12.5, 50.0)
    assert ScoreScale().change(Estimate(0.25, 0.125, 0.5)) == Estimate(-25.0, -50.0, -12.5)


def test_the_scale_follows_from_the_metric() -> None:
    """A workload that only names its metric is still read rightly; a dict of its facts is read too."""
    assert ScoreScale.of({"metric": "mae"}) == ScoreScale(name="mae", higher_is_better=False, bounded=False)
    assert ScoreScale.of({"metric": {"name": "psnr", "bounded": False}}) == ScoreScale(name="psnr", bounded=False)


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (size(3342 * 1024), "3,342 KiB"),
        (size(1536), "1.50 KiB"),
        (size(20 * 2**20), "20.0 MiB"),
        (si(125_486_720), "125 M"),
        (si(999_950), "1.00 M"),
        (si(12), "12"),
        (duration(9.94), "9.9 s"),
        (duration(59.7), "1 min 00 s"),
        (duration(3725), "1 h 02 min"),
        (smaller(200, 100), "2.00x smaller"),
        (smaller(100, 200), "2.00x larger"),
        (smaller(1000, 1001), "as large"),
    ],
)
def test_units_read_as_a_person_writes_them(shown: str, wanted: str) -> None:
    """Sizes, counts, times and ratios have three digits or fewer to read and their unit."""
    assert shown == wanted


@pytest.mark.parametrize("sample", ALL)
def test_the_page_needs_nothing_else(sample) -> None:
    """The HTML has no script, no link, no image, no address to fetch, and forbids all of them by its own policy."""
    html = sample().to_html()
    page = Page(html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "object", "base", "form"})
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name in {"src", "href"} for name in attributes), (tag, attributes)
    assert any(tag == "meta" and "default-src 'none'" in (held.get("content") or "") for tag, held in page.tags)
    assert "@import" not in html
    assert "url(http" not in html


def test_the_page_tells_the_whole_story() -> None:
    """What was removed, what stayed, why, the training, the recipe and the machine are all on the page."""
    text = Page(rollback().to_html()).text
    for part in (
        "6.1\N{MULTIPLICATION SIGN} faster",
        "\N{MINUS SIGN}0.5 points", "Budget met", "11.8", "[0.91, 0.97]", "1 of 2 blocks dropped",
        "4 of 32 channels removed", "the output keeps its shape", "48 operators quantized, 2 left in float",
        "SQNR of 9.1 dB", "Training loss", "Validation accuracy", "prune_channels is followed", "Testium 1", "views",
    ):  # fmt: skip
        assert part in text, part


def test_hostile_names_stay_text() -> None:
    """Markup in names of layers, stages and files is shown, never interpreted: in HTML and in Markdown."""
    report = hostile()
    page = Page(report.to_html())
    assert "<script>alert(1)</script>" in page.text
    assert "\x1b" not in report.to_html() + report.to_markdown()
    unescaped = re.sub(r"\\.", "", report.to_markdown())
    assert "<" not in re.sub(r"```.*?```|(`+)(?!`).*?(?<!`)\1(?!`)", "", unescaped, flags=re.DOTALL)


def test_markdown_holds_the_table_and_the_reasons() -> None:
    """The Markdown page has a row per step, what was removed, and the environment."""
    text = rollback().to_markdown()
    assert len(re.findall(r"^\| (reference|drop|prune|distill|quantize)", text, flags=re.MULTILINE)) == 5
    assert "- `conv1`: 16 to 12 channels" in text
    assert "- dropped 1 of 2 blocks: `layer1.1`" in text
    assert "2 Add, SQNR of 9.1 dB is below 10 dB: `/a/Add`, `/b/Add`" in text
    assert "| cpu | Testium 1 |" in text


def test_layers_made_thinner_are_listed() -> None:
    """Every chain stands with its ranks, what it loses and its weights, and nothing of it is told a second time."""
    report = Report(workload=WORKLOAD, environment=ENVIRONMENT, steps=(REFERENCE, THINNER), final=1)
    text, page = report.to_markdown(), html(report)
    assert "| `conv1` | tucker | 32 x 16 | 64 x 64 | 2.10 | 36,864 | 7,680 |" in text
    assert "2 layers became a chain of thinner ones: 45,056 weights became 10,752." in page
    assert "32 x 16 of 64 x 64" in page
    assert "its full rank 10 is not above the aligned minimum 16" in page
    assert other_details(THINNER) == {}


def test_shared_values_are_listed() -> None:
    """Every layer stands with its values, its weights and what was lost; nothing is told a second time."""
    report = Report(workload=WORKLOAD, environment=ENVIRONMENT, steps=(REFERENCE, SHARED), final=1)
    text, page = report.to_markdown(), html(report)
    assert "| `conv1` | 16 | 432 | 1.23 |" in text
    assert "590,256 weights of 2 layers have 32 different values for good" in page
    assert "makes nothing faster" in page
    assert "ClusterWeights(clusters=16)" in page
    assert "too many for 12 different weights" in page
    assert other_details(SHARED) == {}


def test_a_busy_machine_is_named() -> None:
    """A load above the core count is said in every form: timings then deserve less trust."""
    busy = Report(
        workload={}, environment={**ENVIRONMENT, "busy": True, "load_average": [5.2, 1, 1]}, steps=(REFERENCE,), final=0
    )
    for text in (busy.to_html(), busy.to_markdown(), printed(busy, 100)):
        assert "5.2 on 2 cores" in text


def test_environment_names_what_numbers_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU, cores and versions are there, and a load of 99 on this machine makes it busy."""
    monkeypatch.setattr("os.getloadavg", lambda: (99.0, 2.0, 1.0), raising=False)
    found = environment(Target(isa=Isa.ARM_DOT))
    assert found["isa"] == "arm_dot"
    assert found["busy"] is True
    assert found["load_average"] == [99.0, 2.0, 1.0]
    assert found["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert violations(found, SCHEMA["properties"]["environment"]) == []


def test_a_workload_is_described_by_its_facts(tiny_workload) -> None:
    """The report knows the metric's direction and the shape of a sample."""
    facts = describe_workload(tiny_workload)
    assert facts["metric"] == "accuracy"
    assert facts["higher_is_better"] is True
    assert facts["input_shapes"] == [[3, 8, 8]]


def test_ticks_are_round_and_inside() -> None:
    """Between 0 and 3.4 the four or so round numbers are 0, 1, 2, 3."""
    assert nice_ticks(0, 3.4, 4) == [0, 1, 2, 3]
    assert nice_ticks(5, 5, 4) == [5]


def test_a_score_far_off_becomes_an_arrow() -> None:
    """A model just cut to 25 % does not squeeze the half point between the others into one pixel."""
    rows = [
        Item(label="a", state="reference", value=0.90, low=0.895, high=0.905, focus=True),
        Item(label="b", state="kept", value=0.25, low=0.24, high=0.26),
        Item(label="c", state="kept", value=0.89, low=0.885, high=0.895, focus=True),
    ]
    chart = dot_chart("score", rows, str, limit=0.89)
    assert [mark.beyond for mark in chart.marks] == ["", "low", ""]
    assert chart.marks[0].x - chart.marks[2].x > BAR_WIDTH / 4


def test_pareto_front_by_hand() -> None:
    """(latency, size, score): the slow good one and the fast small one stand, the one beaten in all three goes."""
    points = [(3.0, 300, 0.90), (1.0, 100, 0.89), (1.0, 100, 0.88), (2.0, 90, 0.85), (3.0, 300, 0.90)]
    assert pareto_front(points) == [True, True, False, True, True]


def test_staircase_passes_by_beaten_points() -> None:
    """The line goes up from the fastest, right to the next better score, and on to the edge."""
    assert staircase([(100, 200), (150, 250), (200, 100)]) == "M100 292V200H200V100H408"


def test_labels_do_not_cover_each_other() -> None:
    """Two points at one place get their labels on different sides."""
    first, second = place_labels([(200, 150), (200, 150)], ["one", "two"])
    assert first != second


def comparison() -> list[ComparisonRow]:
    """A reference, a recipe that beats it, and one with a hostile name."""
    made = []
    for name, step, drop, link in (
        ("reference", REFERENCE, None, None),
        ("int8", QUANTIZE, QUANTIZE.drop, "int8/report.html"),
        ("<b>|x", QUANTIZE, QUANTIZE.drop, "javascript:alert(1)"),
    ):
        now = step.measurement
        made.append(
            ComparisonRow(
                name=name,
                score=now.score,
                drop=drop,
                latency_ms=now.latency_ms,
                speedup=now.speedup,
                size_bytes=now.size_bytes,
                compressed_bytes=now.compressed_bytes,
                seconds=step.seconds,
                pareto=True,
                report=link,
            )
        )
    return made


def test_comparison_page_is_safe_and_links_to_the_reports() -> None:
    """Names are text and links stay inside the folder: nothing a recipe is called can become a script."""
    page = Page(comparison_html(comparison(), "tiny"))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == ["./int8/report.html", "./javascript%3Aalert%281%29"]
    assert {tag for tag, _ in page.tags}.isdisjoint({"b", "img", "link"})
    assert "<b>|x" in page.text


def test_one_script_runs_on_the_page_by_its_hash() -> None:
    """The policy allows the script that the page ends with, by its digest alone, and what it is given is JSON."""
    html = comparison_html(comparison(), "tiny")
    found = re.findall(r"<script([^>]*)>(.*?)</script>", html, re.DOTALL)
    assert [attributes for attributes, _ in found] == [' type="application/json" id="rows"', ""]
    digest = base64.b64encode(hashlib.sha256(found[1][1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert [told["name"] for told in json.loads(found[0][1])["rows"]] == ["reference", "int8", "<b>|x"]
    assert "<" not in found[0][1]
    # Without any row there is nothing to explore, and no script.
    assert "<script" not in comparison_html([], "none")


def test_comparison_svg_is_well_formed() -> None:
    """The picture parses as XML and has a point per row in each of its two plots."""
    from xml.etree import ElementTree as ET

    root = ET.fromstring(comparison_svg(comparison()))  # noqa: S314 - our own text
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 6


def test_comparison_tables_agree() -> None:
    """Terminal and Markdown name every row and the same speed-up."""
    stream = io.StringIO()
    print_comparison(comparison(), Console(file=stream, width=100))
    text = comparison_markdown(comparison())
    for shown in (stream.getvalue(), text):
        assert "int8" in shown
        assert "6.1x" in shown
    assert r"\<b\>\|x" in text


def row(name: str, speedup: tuple[float, float, float], kib: int, *, score: float = 0.9, **more: Any) -> ComparisonRow:
    """A row whose score has an interval of half a point on both sides."""
    return ComparisonRow(
        name=name,
        score=Estimate(score, score - 0.005, score + 0.005),
        drop=None if name == "reference" else Estimate(0.005, 0.0, 0.01),
        latency_ms=Estimate(1 / speedup[0], 1 / speedup[2], 1 / speedup[1]),
        speedup=Estimate(*speedup),
        size_bytes=kib * 1024,
        compressed_bytes=kib * 1000,
        seconds=1.0,
        pareto=True,
        report=None,
        **more,
    )


BASE = row("reference", (1.0, 1.0, 1.0), 1000)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], []),
        ([BASE], []),
        (
            [BASE, row("a", (6.0, 5.9, 6.1), 100, budget_met=True), row("b", (2.0, 1.9, 2.1), 90, score=0.8)],
            ["Ship a: 6.0x faster [5.9, 6.1], 10.0x smaller, accuracy -0.5 points [-1.0, 0.0], within its budget."],
        ),
        (
            [BASE, row("a", (6.0, 5.9, 6.1), 100), row("b", (5.95, 5.8, 6.0), 90)],
            [
                "Ship b: 6.0x faster [5.8, 6.0], 11.1x smaller, accuracy -0.5 points [-1.0, 0.0].",
                (
                    "Its speed cannot be told apart from that of a (the intervals overlap); its file is the smallest "
                    "of them."
                ),
                "On these test data its accuracy cannot be told apart from that of a.",
            ],
        ),
        (
            [BASE, row("a", (6.0, 5.9, 6.1), 100, budget_met=False), row("b", (2.0, 1.9, 2.1), 90, score=0.8)],
            [
                "Ship b: 2.00x faster [1.90, 2.10], 11.1x smaller, accuracy -0.5 points [-1.0, 0.0].",
                "a missed the budget.",
            ],
        ),
        (
            [BASE, row("a", (6.0, 5.9, 6.1), 100, budget_met=False)],
            ["Ship none of them yet: a missed the budget. Ease it, or try other recipes."],
        ),
        (
            [BASE, row("a", (1.0, 0.9, 1.1), 1000, budget_met=True)],
            ["Ship the reference: no recipe gave a file that is faster or smaller."],
        ),
    ],
)
def test_a_comparison_begins_with_what_to_ship(rows: list[ComparisonRow], said: list[str]) -> None:
    """The fastest within the budget, the smallest of those whose intervals overlap; and what misses the budget."""
    assert conclusions(rows) == said
    page = Page(comparison_html(rows, "tiny", busy="The machine was busy (9).")).text
    stream = io.StringIO()
    print_comparison(rows, Console(file=stream, width=200), busy="The machine was busy (9).")
    shown = stream.getvalue()
    for text in said:
        assert text[:9] in page
        assert shown.index(text) < shown.index("recipe  " if rows else "Pareto")
    for told in (page, shown):
        assert "The machine was busy (9)." in told


def test_decibels_have_a_scale() -> None:
    """Reports that speak of decibels say what 10 and 40 of them are; others in the terminal do not."""
    report = Report(
        workload={"metric": "relative", "bounded": False, "decibels": True},
        environment={},
        steps=(
            replace(REFERENCE, measurement=replace(measurement(0.9, 1.0, 10, (1, 1, 1)), score=Estimate(40, 39, 41))),
        ),
        final=0,
    )
    assert "At 10 dB it has a tenth" in " ".join(printed(report, 200).split())
    assert "At 10 dB it has a tenth" in report.to_html()
    assert "At 10 dB" not in printed(rollback(), 200)


@pytest.mark.parametrize("seed", range(20))
def test_labels_never_cross_whiskers(seed: int) -> None:
    """Eight points at random, each with whiskers on both axes: no label meets a whisker, a point or another label."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    points = []
    for number in range(8):
        x, y = draw.uniform(0.2, 4), draw.uniform(80, 95)
        points.append(
            Point(name=f"recipe_number_{number}", x=(x, 0.9 * x, 1.1 * x), y=(y, y - 1.5, y + 1.5), best=False)
        )
    placed = panel("p", points, x_title="ms", y_label=str, up=True).points
    areas = [label_area(one.label_x, one.label_y, one.anchor, one.label) for one in placed]
    bars = [
        bar
        for one in placed
        for bar in (
            (one.x - 0.5, one.y_high, one.x + 0.5, one.y_low),
            (one.x_low, one.y - 0.5, one.x_high, one.y + 0.5),
        )
    ]
    assert [(area, bar) for area in areas for bar in bars if overlap(area, bar)] == []
    assert [(a, b) for n, a in enumerate(areas) for b in areas[n + 1 :] if overlap(a, b)] == []


def test_an_empty_comparison_is_a_page_too() -> None:
    """Where every recipe failed, the page and the tables still come out."""
    assert "Comparison" in comparison_html([], "tiny")
    assert comparison_svg([]).strip().startswith("<svg")
    assert comparison_markdown([])


def test_a_training_is_told_in_words() -> None:
    """The page and the Markdown say of a training which number format it went in, and that it failed."""
    told = {
        "training": "distill",
        "inner_layers": "bfloat16",
        "why": "the first batch agrees",
        "signal_to_noise_db": 41.23,
        "failed": True,
        "says": "no epoch was better",
    }
    report = rollback()
    steps = list(report.steps)
    steps[3] = replace(steps[3], details={**steps[3].details, "trainings": [told]})
    said = "distill: failed: no epoch was better; inner layers in bfloat16 (the first batch agrees, 41.2 dB)"
    for text in (html(replace(report, steps=tuple(steps))), markdown(replace(report, steps=tuple(steps)))):
        assert said in text
    assert "trainings" not in other_details(steps[3])


def test_it_is_told_how_a_teacher_taught_and_what_became_of_outputs_that_are_not_scored() -> None:
    """The page and the Markdown say how outputs were compared, and how far the others moved."""
    changes = [
        {"output": "depth", "treated": "held where the reference has it", "before": 0.1, "after": 0.034},
        {"output": "pose", "treated": "held", "before": 0.1, "after": 0.63, "says": "this training lost 39%"},
        {"output": "maps", "treated": "left alone: it depends on no weight", "before": None, "after": None},
    ]
    report = rollback()
    steps = list(report.steps)
    told = {"teacher_cache": "not used", "taught": "classes in dimension 2", "other_outputs": changes}
    steps[3] = replace(steps[3], details={**steps[3].details, **told})
    for text in (html(replace(report, steps=tuple(steps))), markdown(replace(report, steps=tuple(steps)))):
        plain = text.replace("\\", "").replace("&#39;", "'")
        assert "the teacher's judged output: classes in dimension 2" in plain
        assert "output depth, which is not scored: held where the reference has it" in plain
        assert "from the reference's by 10.0% of its spread before, 3.4% after" in plain
        assert "from the reference's by 10.0% of its spread before, 63.0% after; this training lost 39%" in plain
        assert "output maps, which is not scored: left alone: it depends on no weight" in plain
    assert not {"taught", "other_outputs"} & other_details(steps[3]).keys()
