"""Evaluations in runs: they stand in every report, decide nothing, and are not made again."""

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from compressor import ByClass, Calibration, GeneralisationGap, Pipeline, Recipe, Robustness, WhatWent
from compressor.cli.app import app
from compressor.errors import RecipeError
from compressor.evaluations import evaluation as evaluating
from compressor.report.report import Report
from compressor.stage import Effect

ALL = (Calibration(bins=5), GeneralisationGap(samples=60), Robustness(severity=2), ByClass(pictures=3), WhatWent())


@dataclass(frozen=True, kw_only=True)
class Blinded:
    """A stage that never answers class 0 any more."""

    effect: ClassVar[Effect] = Effect.VALUES

    def apply(self, model: nn.Module, workload, context) -> nn.Module:
        with torch.no_grad():
            model.linear.bias[0] -= 1000
        return model


@pytest.fixture(scope="module")
def finished(tmp_path_factory, _trained_model):
    """A run with all evaluations, and its folder."""
    from workbench.tiny import make_workload

    folder = tmp_path_factory.mktemp("run")
    workload = make_workload(_trained_model)
    return Pipeline([Blinded()], evaluations=ALL).run(workload, out=folder, progress=False).report, folder, workload


def test_every_step_is_asked(finished) -> None:
    """The reference has answers, the stage has answers, what they were before, and paired changes."""
    report, _, _ = finished
    rows = {step.stage: step.details["evaluations"] for step in report.steps}
    asked = ["calibration", "generalisation_gap", "robustness", "robustness", "robustness"]
    assert [[row["evaluation"] for row in each] for each in rows.values()] == [asked, asked]
    assert not any(row["why"] for each in rows.values() for row in each)
    assert all("worse" not in row for row in rows["reference"])
    assert all(row["worse"]["value"] == pytest.approx(0, abs=1) for row in rows["blinded"])
    for before, after in zip(rows["reference"], rows["blinded"], strict=True):
        assert after["reference"]["value"] == before["value"]["value"]
    clean = report.steps[1].drop.value
    assert all(row["worse"]["value"] > clean / 2 for row in rows["blinded"] if row["evaluation"] == "robustness")


def test_the_class_that_went_is_named_with_its_samples(finished) -> None:
    """All of class 0 is wrong now, and the first flips are shown as pictures."""
    report, folder, _ = finished
    changes = report.steps[1].details["class_changes"]
    assert [row["label"] for row in changes["classes"] if row["lost"]] == ["0"]
    assert changes["classes"][0]["after"] == 0.0
    assert [flip["label"] for flip in changes["flips"]] == ["0", "0", "0"]
    assert changes["lost"] >= 10
    page = (folder / "report.html").read_text()
    assert page.count('src="data:image/png;base64,iVBOR') == 3
    assert "img-src data:" in page
    text = report.to_markdown()
    assert "expected calibration error, 5 bins" in text
    assert "gaussian blur, severity 2" in text
    assert "0 (lost)" in text


def test_they_are_read_from_disk_and_decide_nothing(finished, monkeypatch) -> None:
    """The same run again asks nothing; without evaluations all numbers but theirs are the same."""
    report, folder, workload = finished
    monkeypatch.setattr(evaluating, "predictions", None)
    monkeypatch.setattr(evaluating, "score_rows", None)
    again = Pipeline([Blinded()], evaluations=ALL).run(workload, out=folder, progress=False).report
    assert [step.details for step in again.steps] == [step.details for step in report.steps]
    plain = Pipeline([Blinded()]).run(workload, out=folder, progress=False).report
    for with_them, without in zip(report.steps, plain.steps, strict=True):
        assert (without.measurement, without.kept, without.validation) == (
            with_them.measurement,
            with_them.kept,
            with_them.validation,
        )
        assert "evaluations" not in without.details


def test_odd_pictures_of_a_report_are_left_out(finished) -> None:
    """A report from elsewhere may hold anything: what is no PNG file in base64 becomes no address."""
    report, _, _ = finished
    data = json.loads(json.dumps(report.to_json()))
    for flip, odd in zip(
        data["steps"][1]["details"]["class_changes"]["flips"], ("javascript:1", '"><script>', "AAAA"), strict=True
    ):
        flip["picture"] = odd
    page = Report.from_json(data).to_html()
    assert "<img" not in page
    assert "<script>" not in page


def test_recipes_name_them() -> None:
    """By name, with settings, and back; unknown ones are refused with their line."""
    text = "stages: [quantize]\nevaluations:\n  - calibration\n  - robustness: {severity: 2}\n"
    recipe = Recipe.loads(text)
    assert recipe.evaluations == (Calibration(), Robustness(severity=2))
    assert Recipe.loads(recipe.dump()) == recipe
    assert Pipeline.from_recipe(recipe).evaluations == recipe.evaluations
    with pytest.raises(RecipeError, match=r"recipe.yaml:3.*calibration"):
        Recipe.loads(text.replace("- calibration", "- calibratio"))
    with pytest.raises(RecipeError, match="severity is 1 to 5"):
        Recipe.loads(text.replace("2}", "9}"))


def test_what_is_no_evaluation_is_refused() -> None:
    """A class that was not called, and anything else."""
    with pytest.raises(TypeError, match="call it"):
        Pipeline([Blinded()], evaluations=[Calibration])
    with pytest.raises(TypeError, match="is not an evaluation"):
        Pipeline([Blinded()], evaluations=[3])


def test_the_command_line_names_them(tmp_path) -> None:
    """An unknown one is wrong use, with the nearest."""
    command = ["run", "int8", "-w", "digits", "--out", str(tmp_path / "out"), "--evaluate", "calibratio"]
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 2
    assert "did you mean 'calibration'" in ended.stderr
