"""The benchmark of membership: rows of a recipe on a tiny network, and the page that they make."""

import argparse
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.documents import trust_page
from benchmarks.trust import membership
from compressor import Workload


def test_a_network_beside_learns_from_the_data_it_is_given_alone() -> None:
    """Nine tenths of each class train it and one judges its epochs; another number is another network."""
    targets = torch.arange(60) % 3
    data = torch.arange(60.0)[:, None], targets
    found = [membership.beside(lambda: nn.Linear(1, 3), data, number, "a", batch_size=16) for number in (0, 1)]
    learned, judged = (
        torch.cat([inputs[:, 0] for inputs, _ in part]).tolist() for part in (found[0].train, found[0].validation)
    )
    assert sorted(judged) == [0.0, 1.0, 2.0, 30.0, 31.0, 32.0]
    assert {*learned} < {*map(float, range(60))} - {*judged}
    assert len(learned) >= 48
    assert not torch.equal(found[0].model.weight, found[1].model.weight)


def test_rows_stay_where_they_were_made_by_the_same_settings(tmp_path) -> None:
    """What was asked of other samples is asked again."""
    path, made = tmp_path / "it.json", {"samples": 500, "others": 2}
    assert membership.stored(path, made) == {}
    membership.write_json(path, {**made, "networks": {"a": {}}})
    assert membership.stored(path, made) == {"a": {}}
    assert membership.stored(path, {**made, "samples": 400}) == {}


@pytest.mark.slow
def test_a_tiny_budget(tmp_path) -> None:
    """A row has three attacks with what the reference gives away and the change; without other networks two."""
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(count, 6, generator=generator), torch.arange(count) % 2) for count in (200, 120)]
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    workload = Workload.from_datasets(model, train=data[0], validation=data[1], test=data[1], name="tiny")
    other = tmp_path / "other.onnx"
    other.write_bytes(membership.export_onnx(model, workload).onnx_bytes)
    recipe = tmp_path / "plain.yaml"
    recipe.write_text("stages: [quantize]\n", encoding="utf-8")
    asked = argparse.Namespace(samples=150, out=tmp_path)
    row = membership.one_recipe(str(recipe), replace(workload, name="tiny"), (str(other),), asked)
    assert [answer["why"] for answer in row["answers"]] == [""] * 6
    assert all(answer["worse"] is not None for answer in row["answers"])
    assert len(membership.one_recipe(str(recipe), replace(workload, name="alone"), (), asked)["answers"]) == 4


def row(what: str, worse: tuple[float, float, float] | None) -> dict:
    value = {"value": 0.6, "low": 0.5, "high": 0.7}
    change = None if worse is None else dict(zip(("value", "low", "high"), worse, strict=True))
    return {"what": what, "value": value, "reference": value, "worse": change, "why": ""}


def test_the_page_tells_what_was_tried_and_what_is_given_away() -> None:
    """Numbers by hand; what is beyond chance is in bold; what was not run has no row."""
    text = "<!-- tried -->\nformer\n<!-- /tried -->\n<!-- members -->\nformer\n<!-- /members -->\n"
    counts = {"files": 2000, "untyped": 0, "hangs": 0, "over": 0, "other": 1}
    tried = {
        "mutants": {"readers": {"a": {}, "b": {}}, "all": counts},
        "kills": {"commands": {"pack": {"kills": 30, "points": 4, "lost": 0, "other": 0}}},
    }
    answers = [row("area", (0.02, 0.01, 0.03)), row("found", (0.0, -0.01, 0.01))]
    scores = {"score": {"value": 0.9}, "reference": {"value": 0.925}}
    members = {"samples": 500, "networks": {"net": {"int8": {**scores, "answers": answers}}}}
    page = trust_page.page(text, tried, members)
    assert (
        "| damaged files for 2 readers, of that 0 ONNX files, each opened in a process of its own | 2,000 | 0 errors"
        in page
    )
    assert "1 read as something else |" in page
    assert "| `pack` killed, of that 4 times at a write point of its own | 30 | 0 lost, 0 with other files" in page
    assert "bits flipped" not in page
    assert "| none | 92.5 | 60.0 [50.0, 70.0] | 60.0 [50.0, 70.0] |" in page
    assert "| `int8` | 90.0 | **+2.0 [1.0, 3.0]** | +0.0 [-1.0, 1.0] |" in page
    assert "former" not in page
    assert trust_page.page(text, None, None) == text
