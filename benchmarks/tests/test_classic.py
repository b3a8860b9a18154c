"""The classic example: weights go to Keras and back, the tutorial runs, and the table shows what is stored."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import classic as command
from benchmarks.data import classic
from benchmarks.documents import techniques_page
from benchmarks.peers.keras_weights import from_keras_, to_keras
from compressor.recipe.recipe import Recipe
from compressor.running.pipeline import Pipeline
from compressor.workloads import load
from workbench import ROOT
from workbench.tiny import make_workload


def channels_last(arrays: list[np.ndarray], image: np.ndarray) -> np.ndarray:
    """What Keras computes with these weights for one image (height, width, 1), written with loops over places."""
    given, values = iter(arrays), image
    for weight, bias in zip(given, given, strict=True):
        last = weight is arrays[-2]
        if weight.ndim == 4:
            rows, columns = values.shape[0] - 2, values.shape[1] - 2
            found = np.array(
                [
                    [np.einsum("hwi,hwio->o", values[y : y + 3, x : x + 3], weight) + bias for x in range(columns)]
                    for y in range(rows)
                ]
            )
            found = np.maximum(found, 0)[: rows // 2 * 2, : columns // 2 * 2]
            values = found.reshape(rows // 2, 2, columns // 2, 2, -1).max(axis=(1, 3))
        else:
            values = values.reshape(-1) @ weight + bias
            values = values if last else np.maximum(values, 0)
    return values


@pytest.mark.parametrize("network", list(classic.NETWORKS))
def test_weights_as_keras_has_them(network: str) -> None:
    """Computed channels last, with loops, the laid-out weights give torch's logits; put back, they are as before."""
    model = classic.NETWORKS[network]()
    arrays = to_keras(model)
    image = torch.randn(1, 1, 28, 28)
    with torch.no_grad():
        wanted = model(image)[0].numpy()
    np.testing.assert_allclose(channels_last(arrays, image[0, 0, ..., None].numpy()), wanted, rtol=1e-4, atol=1e-5)
    other = from_keras_(classic.NETWORKS[network](), arrays)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_the_networks_are_the_classic_ones() -> None:
    """320 + 18,496 + 16,010 parameters, and 50,240 + 650."""
    counts = {name: sum(p.numel() for p in make().parameters()) for name, make in classic.NETWORKS.items()}
    assert counts == {"convolutional": 34_826, "dense": 50_890}


@pytest.mark.parametrize("network", ["convolutional", "dense"])
def test_the_tutorial_runs(network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workload of docs/classic.md trains on 300 digits, and the recipe leaves a tenth of every layer's weights."""
    page = (ROOT / "docs" / "classic.md").read_text(encoding="utf-8")
    block = page.split("```python\n")[1].split("```")[0]
    module = f"my_mnist_{network}"
    text = block.replace("55_000", "300").replace("range(5)", "range(1)")
    (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (400, 28, 28), dtype=np.uint8)
    digits = np.arange(400, dtype=np.uint8) % 10
    np.savez(tmp_path / "mnist.npz", x_train=images, y_train=digits, x_test=images[:50], y_test=digits[:50])
    monkeypatch.chdir(tmp_path)
    workload = load(f"{module}:{network}")
    changes = {"epochs": 2, "end": 4, "frequency": 2}
    recipe = Recipe.load("polynomial_decay").with_overrides(
        [f"stages.0.schedule.polynomial.{name}={value}" for name, value in changes.items()] + ["budget=null"]
    )
    result = Pipeline.from_recipe(recipe).run(workload, out=tmp_path / "run")
    (step,) = (step for step in result.report.steps if step.stage == "sparsify_weights")
    counts = {count["layer"]: (count["zero"], count["of"]) for count in step.details["zero_weights"]}
    assert counts
    for zero, of in counts.values():
        assert zero == round(0.9 * of)


def test_the_tutorial_says_what_the_recipe_does() -> None:
    """The pipeline that the page writes out is the recipe, and its last example is one of the catalogue."""
    block = (ROOT / "docs" / "classic.md").read_text(encoding="utf-8").split("```python\n")[2].split("```")[0]
    names: dict = {}
    exec(compile(block, "classic.md", "exec"), names)
    assert tuple(names["pipeline"].stages) == Recipe.load("polynomial_decay").stages
    longer = Recipe.load("polynomial_decay_int8")
    assert longer.stages[:1] == Recipe.load("polynomial_decay").stages
    assert len(longer.stages) == 2


def test_means_over_seeds() -> None:
    """An image that two of three seeds read well counts two thirds."""
    rows = [torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]), torch.tensor([1.0, 1.0])]
    assert command.mean_rows(rows).tolist() == pytest.approx([1.0, 2 / 3])


def test_a_summary_becomes_a_table(tmp_path: Path, tiny_cnn, capsys) -> None:
    """Accuracies, sizes and differences of every arm are those of its files; the page has a line for each."""
    from compressor.files.export import export_onnx

    workload = make_workload(tiny_cnn(), train=32, test=40)
    file = export_onnx(workload.model.eval(), workload).onnx_bytes
    run = {}
    for label in (command.TRAINED, command.OURS, command.ACROSS, command.THEIRS, command.INTEGERS):
        path = tmp_path / f"{len(run)}.onnx"
        path.write_bytes(file)
        facts = {"versions": {"tensorflow": "1.2.3"}, "seconds": 2.0} if label == command.THEIRS else {}
        path.with_suffix(".json").write_text(json.dumps(facts), encoding="utf-8")
        run[label] = path
    entry = {"seeds": [0, 1]} | command.summary(workload, [run, run])
    ours, theirs = entry["arms"][command.OURS], entry["arms"][command.THEIRS]
    assert ours["accuracy"] == theirs["accuracy"]
    assert (ours["below_ours"], theirs["below_ours"]["value"]) == (None, 0)
    assert (ours["size_bytes"], ours["sparsity"]) == (len(file), pytest.approx(0, abs=0.02))
    lines = techniques_page.classic_section({"networks": {"tiny": entry}})
    assert "tensorflow 1.2.3" in " ".join(lines)
    assert sum(line.startswith("| tiny |") for line in lines) == 5
    command.print_table("tiny", entry)
    assert capsys.readouterr().out.count("after zstd") == 5
    assert isinstance(workload.model, nn.Module)
