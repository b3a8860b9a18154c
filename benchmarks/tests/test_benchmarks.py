"""The benchmarks' parts do what their tables say, and the documents show the stored results."""

import io
import math
import sys
import wave

import numpy as np
import pytest
import torch
from torch import nn

from compressor import Target
from compressor.errors import StageError
from compressor.stages import Distill, DropBlocks
from compressor.workloads.residual import ResNet
from workbench import ROOT
from workbench.tiny import make_workload


@pytest.fixture
def small_workload():
    """Two droppable blocks: exporting takes a while for every operator."""
    return make_workload(ResNet(blocks=[2], widths=[16], classes=4).eval(), train=64, test=32)


def test_documents_show_what_is_stored():
    """docs/benchmarks.md and the README's table are what `make docs` makes of the stored results: none is typed."""
    pytest.importorskip("matplotlib", reason="matplotlib draws the pictures of the documents: pip install .[bench]")
    import docs

    networks = docs.stored_networks()
    assert networks, "the benchmark's results belong into the repository"
    assert (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8") == docs.page(networks)
    assert (ROOT / "README.md").read_text(encoding="utf-8") == docs.readme(networks)
    results = docs.structure_docs.stored(docs.RESULTS)
    if results:
        assert (ROOT / "docs" / "structure.md").read_text(encoding="utf-8") == docs.structure_docs.page(results)


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


def test_the_peer_counts_layers_by_hand(tiny_cnn):
    """The count of convolutions and linear layers: output elements times the weights behind each."""
    import peers

    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 4 * 4, 5))
    assert peers.layer_macs(model, torch.zeros(2, 3, 4, 4)) == 8 * 16 * 27 + 5 * 128


def test_a_structure_table_has_a_row_for_success_and_for_failure(small_workload, tmp_path, monkeypatch, capsys):
    """Success has speed-ups, ratios and efficiency, a pruner that raises its error; nothing is done twice."""
    import structure
    import structure_docs

    calls = []

    def failing(_workload, _context):
        calls.append("failing")
        raise StageError("no channel\nof this | network")

    monkeypatch.setattr(structure, "time_interleaved", _brief(structure.time_interleaved))
    arms = {"DropBlocks, Latency(0.5)": structure.by_stage(DropBlocks(remove=0.5)), "Torch-Pruning": failing}
    for _ in range(2):
        rows = structure.run(small_workload, arms, tmp_path, target=Target(), seconds=0.1)
    assert calls == ["failing"]
    row = rows["DropBlocks, Latency(0.5)"]
    assert row["macs_ratio"] == rows["dense"]["macs"] / row["macs"] > 1
    for form in ("float32", "int8"):
        assert row[form]["efficiency"] == row[form]["speedup"]["value"] / row["macs_ratio"]
    assert rows["Torch-Pruning"]["error"] == "StageError: no channel"
    (asked,) = structure.asked_and_achieved("tiny", rows)
    assert asked["achieved"]["value"] == 1 / row["float32"]["speedup"]["value"]
    structure.print_table("tiny", rows)
    assert "of the time, asked 0.5" in capsys.readouterr().out
    where = {"cpu": "a CPU", "versions": {"onnxruntime": "1"}}
    page = structure_docs.page({"structure": {"networks": {"tiny": {"environment": where, "rows": rows}}}})
    assert "failed: StageError: no channel" in page
    assert "### Asked for half of the time" in page
    pytest.importorskip("matplotlib", reason="matplotlib draws the pictures of the documents: pip install .[bench]")
    import docs  # sets matplotlib up

    docs.structure_docs.draw({"tiny": {"environment": where, "rows": rows}}, tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text(encoding="utf-8")


def test_recovery_keeps_the_last_epoch(small_workload):
    """Every epoch scores the same, so that training ends with the last, and decides nothing on validation."""
    import recovery

    blind = recovery.to_the_last_epoch(small_workload)
    assert blind.metric.score(torch.randn(4, 10), torch.arange(4)) == 0.0
    assert blind.metric.classes
    assert len(blind.validation) == 1


def test_recovery_compares_the_means_of_the_seeds(small_workload):
    """Ours right on (3 + 4) / 2 of 4 images, theirs on (2 + 3) / 2: a gain of a quarter."""
    import recovery

    ours = [torch.tensor([1.0, 1, 1, 0]), torch.tensor([1.0, 1, 1, 1])]
    theirs = [torch.tensor([1.0, 1, 0, 0]), torch.tensor([1.0, 1, 1, 0])]
    better = recovery.gain(ours, theirs, small_workload.metric)
    assert better["value"] == 0.25
    assert better["low"] <= 0.25 <= better["high"]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Torch-Pruning warns of the parameters that it cannot name
def test_recovery_runs_to_its_table_and_goes_on(small_workload, tmp_path, monkeypatch, capsys):
    """A peer and ours are pruned past the ratio, ours no slower than allowed, recovered, and put into one table."""
    import recovery
    import structure_docs

    monkeypatch.setattr(recovery, "time_interleaved", _brief(recovery.time_interleaved))
    # How fast files of microseconds are is chance: here the structures count.
    monkeypatch.setattr(recovery, "time_fraction", lambda *_: 0.5)
    monkeypatch.setattr(recovery, "RATIO", 1.3)
    monkeypatch.setitem(recovery.OURS, "ours", lambda _keep: DropBlocks(remove=0.5))
    target, recover = Target(), Distill(epochs=1, tail_epochs=1, views=1)
    dense = recovery.dense_file(small_workload, tmp_path / "dense.onnx")
    arms = ["taylor", "ours"]
    for _ in range(2):
        for arm in arms:
            recovery.prune(arm, small_workload, dense, tmp_path, seed=0, target=target)
            recovery.recovered(arm, small_workload, recover, tmp_path, "short", seed=0)
    result = recovery.summary(
        arms, [0], small_workload, dense, out=tmp_path, setting="short", target=target, seconds=0.1
    )
    assert set(result["gains"]) == {"taylor"}
    assert all(row["runs"][0]["macs_ratio"] >= 1.3 for row in result["arms"].values())
    result |= {"ratio": 1.3, "train_images": 256, "epochs": 2}
    assert "| taylor |" in structure_docs.page({"recovery": result})
    recovery.print_table(result)
    assert "256 images" in capsys.readouterr().out


def test_a_pipeline_table_has_every_stage(small_workload, tmp_path, capsys):
    """The reference and each stage have a row with score, size and speed."""
    import recurrent
    import structure_docs

    result = recurrent.run(small_workload, [DropBlocks(remove=0.5)], tmp_path)
    assert [step["stage"] for step in result["steps"]] == ["reference", "drop_blocks"]
    page = structure_docs.page({"recurrent": {"networks": {"tiny": result}}})
    assert page.count("| tiny |") == 2
    recurrent.print_table("tiny", result)
    assert "drop_blocks" in capsys.readouterr().out


def test_the_page_has_the_error_of_predictions():
    """The median and largest error of each form that was measured, in percent."""
    import structure_docs

    rows = [{"model": "a", "family": "cnn"}, {"model": "b", "family": "cnn"}]
    summary = {"fp32_error": {"median": 0.04, "largest": 0.125}}
    result = {"summary": summary, "rows": rows, "entries": 7, "seconds": 3.0, "environment": {}}
    page = structure_docs.page({"latency_table": result})
    assert "| fp32 | absolute time | 4.0 | 12.5 |" in page
    assert "Models: 2, of families: 1;" in page


def test_pruning_time_survives_what_fails(monkeypatch):
    """A tool that dies is reported by its last line, one that takes too long by the limit."""
    import pruning_time
    import structure_docs

    gone = pruning_time.in_own_process("no such tool", "no such model", timeout=120)
    assert "no such model" in gone["error"]
    late = pruning_time.in_own_process("compressor", "tiny_resnet", timeout=0.01)
    assert late == {"error": "took more than 0.01 s"}
    row = {"graph": 1.0, "prune": 2.0, "running": 0.5, "peak_mib": 3.0, "parameters_left": 0.25, "error": None}
    result = {"environment": {}, "models": {"tiny": {"compressor": [row, row], "torch-pruning": [gone]}}}
    page = structure_docs.page({"pruning-time": result})
    assert "| tiny | compressor | 1.00 | 2.00 | 0.50 | 3 | 0.25 |  |" in page


def test_forward_passes_are_timed_on_copies_too():
    """A run of the model and one of its copy are two entries."""
    import copy

    import pruning_time

    model = nn.Linear(2, 2)
    seconds = pruning_time.timed_forwards(model)
    model(torch.zeros(1, 2))
    copy.deepcopy(model)(torch.zeros(1, 2))
    assert len(seconds) == 2


def test_the_networks_have_the_shapes_of_their_papers():
    """VGG-16 has 14.7 M parameters before its classifier, MobileNetV2 2.2 M without; all give what they say."""
    import networks

    def size(model):
        return sum(parameter.numel() for parameter in model.parameters())

    assert size(networks.VGG16().features) == 14_714_688 - 4224 + 8448  # biases made way for scales and shifts
    assert size(networks.MobileNetV2().features) == 2_223_872
    images = torch.randn(2, 3, 32, 32)
    assert networks.VGG16(width=0.125)(images).shape == (2, 10)
    assert networks.MobileNetV2(blocks=1, head=64)(images).shape == (2, 10)
    assert networks.RecurrentClassifier(nn.GRU, hidden=8)(torch.randn(2, 61, 40)).shape == (2, 10)
    words = torch.tensor([[3, 4, 0, 0], [5, 6, 7, 8]])
    model = networks.TextTransformer(vocabulary=9, length=4, width=8, heads=2, feed_forward=16, layers=1).eval()
    assert model(words).shape == (2, 2)
    assert networks.Autoencoder(width=4)(torch.rand(2, 1, 28, 28)).shape == (2, 1, 28, 28)


def test_log_mel_frames_hear_a_tone():
    """A tone of 1000 Hz is loudest in the band around 1000 mel; silence is the floor everywhere."""
    import speech

    tone = torch.sin(2 * math.pi * 1000 * torch.arange(speech.SAMPLES) / speech.RATE)
    frames = speech.log_mel(torch.stack([tone, torch.zeros_like(tone)]))
    assert frames.shape == (2, 61, 40)
    assert torch.equal(frames[1], torch.full((61, 40), math.log(1e-5)))
    # The centres are 2146.1 / 41 mel apart, and 1000 Hz are 1000 mel.
    assert frames[0].mean(dim=0).argmax() == round(1000 * 41 / 2146.1) - 1


def test_recordings_become_one_second():
    """A short 16-bit file is scaled to [-1, 1) and followed by silence; another rate is refused."""
    import speech

    def recording(rate):
        file = io.BytesIO()
        with wave.open(file, "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(rate)
            out.writeframes(np.array([16384, -32768], dtype="<i2").tobytes())
        return file.getvalue()

    samples = speech.waveform(recording(8000))
    assert samples[:3].tolist() == [0.5, -1.0, 0.0]
    assert samples.shape == (8000,)
    with pytest.raises(ValueError, match="8000 Hz is wanted"):
        speech.waveform(recording(16_000))


def test_a_subset_has_as_many_images_of_each_class():
    """The first images of every class are taken, in the order of the file."""
    import cifar

    ranks = cifar.rank_in_class(torch.tensor([3, 3, 1, 3, 1]))
    assert ranks.tolist() == [0, 1, 0, 2, 1]


def _brief(timing):
    def brief(*arguments, **options):
        return timing(*arguments, **{**options, "seconds": 0.1, "repeats": 3})

    return brief


def test_a_quantization_table_has_a_row_for_success_and_for_failure(small_workload, tmp_path, monkeypatch, capsys):
    """A file has its drop, speed and seconds; a tool that is missing or fails says so, and is not asked again."""
    import quantization
    import quantization_docs

    from compressor.stages import Quantize

    calls = []

    def failing(_workload, _fp32, _folder):
        calls.append("failing")
        raise RuntimeError("no kernel\nfor this | network")

    monkeypatch.setattr(quantization, "time_interleaved", _brief(quantization.time_interleaved))
    arms = {"ours: int8": quantization.by_stage(Quantize()), "peer": failing, "nncf": quantization.by_tool("absent")}
    for _ in range(2):
        result = quantization.run(small_workload, arms, tmp_path, seconds=0.1)
    assert calls == ["failing"]
    fp32, ours, peer, missing = result["rows"]
    assert fp32["drop"]["value"] == 0
    assert ours["size_bytes"] < fp32["size_bytes"]
    assert ours["speedup"]["low"] <= ours["speedup"]["value"] <= ours["speedup"]["high"]
    assert ours["details"]["form"]["static"] > 0
    assert peer["failed"] == "RuntimeError: no kernel"
    assert missing["failed"] == "FileNotFoundError: not installed: make .venv-absent"
    quantization.print_table("tiny", result)
    assert "no kernel" in capsys.readouterr().out
    result["environment"] = {"cpu": "a CPU", "versions": {"onnxruntime": "1"}}
    page = quantization_docs.page({"quantization": {"networks": {"tiny": result}}})
    assert "| peer | failed: RuntimeError: no kernel |" in page
    assert page.count("| ours: int8 |") == 1
    quantization_docs.draw({"tiny": result}, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").stat().st_size > 1000


def test_quantization_results_are_what_is_stored():
    """docs/quantization-results.md is what `make docs` makes of the stored results: nothing is typed."""
    pytest.importorskip("matplotlib", reason="matplotlib draws the pictures of the documents: pip install .[bench]")
    import docs

    results = docs.quantization_docs.stored(docs.RESULTS)
    assert results, "the benchmark's results belong into the repository"
    text = (ROOT / "docs" / "quantization-results.md").read_text(encoding="utf-8")
    assert text == docs.quantization_docs.page(results)


def test_a_calibration_table_tells_what_more_images_took() -> None:
    """107 MiB for 64 images and 110.6 for 4096 are 3.6 more; a run that was left out says why and does not count."""
    from calibration import calibration_table, memory_growth

    rows = [
        {
            "method": method,
            "images": images,
            "seconds": 1.0,
            "images_per_second": speed,
            "tensors": 88,
            "growth_mib": mib,
        }
        for method, images, speed, mib in (
            ("Percentile", 64, 150.0, 107.0),
            ("Percentile", 1024, 210.0, 105.0),
            ("Percentile", 4096, 220.0, 110.6),
            ("onnxruntime Percentile", 64, 40.0, 377.0),
            ("onnxruntime Percentile", 1024, 42.0, 5604.0),
        )
    ]
    rows.append({"method": "onnxruntime Percentile", "images": 4096, "skipped": "it would keep 28 GiB of activations"})
    assert memory_growth(rows) == {
        "Percentile": {"from_images": 64, "to_images": 4096, "mib": 3.6},
        "onnxruntime Percentile": {"from_images": 64, "to_images": 1024, "mib": 5227.0},
    }
    ours, theirs = calibration_table({"rows": rows}).splitlines()[2:]
    assert ours.endswith("| 220 /s, 111 MiB | +4 MiB from 64 to 4096 | 5.0x |")
    assert theirs.endswith("| left out: it would keep 28 GiB of activations | +5227 MiB from 64 to 1024 | 1.0x |")
