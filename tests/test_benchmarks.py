"""The benchmarks' parts do what their tables say, and the documents show the stored results."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_documents_show_what_is_stored():
    """docs/benchmarks.md and the README's table are what `make docs` makes of the stored results: none is typed."""
    pytest.importorskip("matplotlib", reason="matplotlib draws the pictures of the documents: pip install .[bench]")
    import docs

    networks = docs.stored_networks()
    assert networks, "the benchmark's results belong into the repository"
    assert (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8") == docs.page(networks)
    assert (ROOT / "README.md").read_text(encoding="utf-8") == docs.readme(networks)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Torch-Pruning warns of the parameters that it cannot name
def test_the_peer_reaches_its_macs(tiny_cnn):
    """Torch-Pruning's pruner stops at twice fewer MACs by its own count, with the output's width kept."""
    import peers
    import torch_pruning

    model, images = tiny_cnn().eval(), torch.randn(2, 3, 8, 8)
    pruned = peers.prune_to_macs(model, images, ratio=2.0)
    before, after = (torch_pruning.utils.count_ops_and_params(each, images[:1])[0] for each in (model, pruned))
    assert before / after >= 1.9  # its count of one image and of two differ in what is added once
    assert pruned(images).shape == (2, 4)
    assert model.conv1.out_channels == 16


def test_images_are_shifted_and_mirrored_whole():
    """Every augmented image is a 32x32 window of the padded image or of its mirror."""
    import cifar

    images = torch.arange(3 * 32 * 32, dtype=torch.int64).remainder(251).to(torch.uint8).view(1, 3, 32, 32)
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    windows = [padded[0, :, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    windows += [window.flip(2) for window in windows]
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        (augmented,) = cifar.crop_and_flip(images, generator)
        assert any(torch.equal(augmented, window) for window in windows)


@pytest.mark.slow
def test_decisions_and_reports_share_no_image():
    """Validation and test are the two halves of the test file, 500 images of every class in each."""
    import cifar

    try:
        cifar.data_folder()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    workload = cifar.resnet20()
    counts = [torch.bincount(data.samples[1]).tolist() for data in (workload.validation, workload.test)]
    assert counts == [[500] * 10] * 2
    halves = [{image.numpy().tobytes() for image in data.samples[0]} for data in (workload.validation, workload.test)]
    # The data set holds a few pictures twice; the same picture may then be on both sides.
    assert len(halves[0] & halves[1]) < 20


def test_importing_compressor_loads_nothing_heavy():
    """`import compressor` brings neither torch-pruning nor ONNX Runtime nor scikit-learn."""
    import subprocess

    code = "import sys, compressor; print([m for m in ('torch_pruning','onnxruntime','sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
