"""A model card that the hub reads, and a bill of materials that its schema accepts, of a run as it was."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from compressor import ByClass, Pipeline, Workload
from compressor.cli.app import app
from compressor.errors import TrustError, WrongUseError
from compressor.report.documents.bom import bill_of_materials
from compressor.report.documents.card import model_card
from compressor.report.documents.shipped import OPEN, Shipped
from compressor.stages import Quantize
from compressor.storage import sha256


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(80, 4, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    data = (inputs, (inputs[:, 0] > 0).long())
    workload = Workload.from_datasets(model, train=data, test=data, name="tiny")
    out = tmp_path_factory.mktemp("documents") / "run"
    Pipeline([Quantize()], evaluations=[ByClass()]).run(workload, out=out, progress=False)
    return out


@pytest.fixture
def shipped(run) -> Shipped:
    return Shipped.read(run)


def front_matter(card: str) -> dict:
    start, text, _ = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(text)


def test_the_card_states_what_was_measured_and_leaves_open_what_nobody_knows(run, shipped) -> None:
    """The numbers are the report's, each class has its row, and use, data and license are marked."""
    card = model_card(shipped)
    measured = shipped.report.shipped.measurement
    (result,) = front_matter(card)["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == measured.score.value
    assert result["dataset"]["name"] == "tiny"
    assert sha256((run / "model.onnx").read_bytes()) in card
    assert f"{measured.size_bytes:,}" in card
    assert [line[:5] for line in card.splitlines() if line.startswith(("| 0 |", "| 1 |"))] == ["| 0 |", "| 1 |"]
    for heading in ("Intended use", "Data", "Ethical considerations", "Contact and license"):
        assert OPEN in card.split(f"## {heading}")[1].split("## ")[0]
    assert model_card(Shipped.read(run)) == card


def test_the_hub_reads_the_card(shipped) -> None:
    """Its library finds the result in the front matter."""
    hub = pytest.importorskip("huggingface_hub")
    (result,) = hub.ModelCard(model_card(shipped)).data.eval_results
    assert (result.metric_type, result.dataset_name) == ("accuracy", "tiny")
    assert result.metric_value == shipped.report.shipped.measurement.score.value


def test_the_bill_of_materials_passes_its_schema(shipped) -> None:
    """CycloneDX 1.6, strictly: no entry that it does not know."""
    pytest.importorskip("cyclonedx", reason="the schema comes with it: pip install .[dev]")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = json.dumps(bill_of_materials(shipped))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    broken = text.replace('"machine-learning-model"', '"machine"')
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(broken) is not None


def test_the_bill_of_materials_says_where_it_comes_from(run, shipped) -> None:
    """Model and ancestors by digest, data by content, libraries by version, scores by class with intervals."""
    found = bill_of_materials(shipped)
    model = found["metadata"]["component"]
    assert model["hashes"] == [{"alg": "SHA-256", "content": sha256((run / "model.onnx").read_bytes())}]
    reference = sha256((run / "stages/00-reference/model.onnx").read_bytes())
    assert model["pedigree"]["ancestors"][1]["hashes"][0]["content"] == reference
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    measured = shipped.report.shipped.measurement
    assert metrics[0] == {
        "type": "accuracy",
        "value": str(measured.score.value),
        "confidenceInterval": {"lowerBound": str(measured.score.low), "upperBound": str(measured.score.high)},
    }
    assert {metric.get("slice") for metric in metrics} == {None, "class 0", "class 1"}
    names = {part["name"]: part for part in found["components"]}
    assert names["torch"]["version"] == torch.__version__.split()[0]
    assert names["tiny, train"]["data"][0]["description"].startswith(OPEN)
    assert {*found["dependencies"][0]["dependsOn"]} == {part["bom-ref"] for part in found["components"]}
    assert bill_of_materials(Shipped.read(run)) == found


def test_names_from_outside_become_no_markup(shipped) -> None:
    """A workload's name that would end the front matter, a table or a page is shown as it is."""
    name = "a|b\n---\n<script>alert(1)</script>: [x](y)"
    facts = {**shipped.report.workload, "name": name, "model": "<img src=x>|"}
    hostile = replace(shipped, report=replace(shipped.report, workload=facts))
    card = model_card(hostile)
    assert front_matter(card)["model-index"][0]["results"][0]["dataset"]["name"] == " ".join(name.split())
    body = card.split("---\n", 2)[2]
    assert r"\<script\>" in body
    assert not re.findall(r"(?<!\\)<(?:script|img)", body)


def test_a_report_that_is_not_the_listed_one_is_refused(run, tmp_path) -> None:
    """An edited number does not get into a document; nor does a folder that is no run."""
    import shutil

    folder = Path(shutil.copytree(run, tmp_path / "run"))
    path = folder / "report.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(TrustError, match="was changed"):
        Shipped.read(folder)
    path.unlink()
    with pytest.raises(TrustError, match="cannot be read"):
        Shipped.read(folder)
    with pytest.raises(TrustError, match=r"has no manifest\.json"):
        Shipped.read(tmp_path)
    with pytest.raises(WrongUseError, match="is no folder"):
        Shipped.read(folder / "model.onnx")


def test_the_commands(run, tmp_path) -> None:
    """To the terminal or a file outside of the run's folder, which stays as its manifest says."""
    for name in ("card", "bom"):
        shown = CliRunner().invoke(app, [name, str(run)])
        assert shown.exit_code == 0
        assert CliRunner().invoke(app, [name, str(run), "--out", str(tmp_path / name)]).exit_code == 0
        assert (tmp_path / name).read_text() == shown.stdout
        assert CliRunner().invoke(app, [name, str(run), "--out", str(run / name)]).exit_code == 2
    assert CliRunner().invoke(app, ["verify", str(run)]).exit_code == 0
