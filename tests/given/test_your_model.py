"""The nine cases of docs/your_model.md run as they stand there, each in at most 12 lines that mention the package."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from compressor.files.export import export_onnx
from compressor.given.notices import WorkloadWarning
from compressor.running.pipeline import PipelineWarning
from compressor.workload import Workload
from workbench import ROOT

PAGE = ROOT / "docs" / "your_model.md"
CASES = dict(re.findall(r"^## (.*?)\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.low = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(8, 8, 2, stride=2), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        first = self.down(x).relu()
        second = self.up(self.low(F.max_pool2d(first, 2)).relu())
        return self.out(torch.cat([first, second], dim=1))


class Detector(nn.Module):
    """Boxes around 16 places of an image, decoded in the graph, a score for each of two classes, and a map besides."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 6, 1)
        steps = 4 * torch.arange(4.0) + 2
        self.register_buffer("places", torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).reshape(16, 2))

    def forward(self, x):
        seen = self.head(F.avg_pool2d(self.body(x).relu(), 2)).flatten(2).transpose(1, 2)
        sizes = 4 * seen[..., :4].sigmoid() + 1
        boxes = torch.cat([self.places - sizes[..., :2], self.places + sizes[..., 2:]], dim=-1)
        return {"boxes": boxes, "scores": seen[..., 4:], "map": self.body(x)}


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def pairs(inputs, targets, names=("images", "labels")):
    first, second = names
    return {first: inputs, second: targets, f"test_{first}": inputs, f"test_{second}": targets}


def loaders(collate=None, *tensors):
    made = {name: DataLoader(TensorDataset(*tensors), 16, collate_fn=collate) for name in ("loader", "test_loader")}
    return made | {"validation_loader": made["test_loader"]}


def cnn():
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 4)
    )
    return {"model": model, **pairs(torch.randn(64, 1, 8, 8), torch.arange(64) % 4)}


def hugging_face():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    ids, labels = torch.randint(0, 40, (48, 6)), torch.arange(48) % 3

    def collate(samples):
        first, second = zip(*samples, strict=True)
        mask = torch.ones(len(samples), 6, dtype=torch.long)
        return {"input_ids": torch.stack(first), "attention_mask": mask, "labels": torch.stack(second)}

    return {"model": BertForSequenceClassification(config), **loaders(collate, ids, labels)}


def tabular():
    draw = np.random.default_rng(0)
    table, prices = draw.normal(size=(80, 6)), draw.normal(size=(80, 1))
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))
    return {"model": model, **pairs(table, prices, ("table", "prices"))}


def recurrent():
    return {"model": Reader(), **pairs(torch.randn(64, 7, 5), torch.arange(64) % 3, ("series", "labels"))}


def segmentation():
    masks = torch.randint(0, 4, (48, 8, 8))
    masks[:, 0] = 255
    return {"model": UNet(), **pairs(torch.randn(48, 3, 8, 8), masks, ("images", "masks"))}


def detection():
    corners = 10 * torch.rand(48, 3, 2)
    kinds = torch.randint(-1, 2, (48, 3, 1)).float()
    targets = torch.cat([kinds, corners, corners + 2 + 4 * torch.rand(48, 3, 2)], dim=-1)

    def detection_loss(outputs, targets):
        return outputs.square().mean() + 0 * targets.sum()

    return {"model": Detector(), "detection_loss": detection_loss, **loaders(None, torch.randn(48, 3, 16, 16), targets)}


def loader():
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 5))
    return {"model": model, **loaders(None, torch.randn(64, 8), torch.arange(64) % 5)}


def onnx_file():
    data = (torch.randn(64, 8), torch.arange(64) % 3)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3)).eval()
    Path("model.onnx").write_bytes(export_onnx(model, Workload.from_datasets(model, train=data, test=data)).onnx_bytes)
    np.savez("data.npz", inputs=data[0].numpy(), targets=data[1].numpy())
    return {}


def labels():
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    return {"model": model, **pairs(torch.randn(64, 8), (torch.rand(64, 4) < 0.4).float(), ("x", "y"))}


MADE = {
    "A CNN on arrays": (cnn, "accuracy"),
    "Hugging Face, batches that are dicts": (hugging_face, "accuracy"),
    "Tabular regression": (tabular, "r2"),
    "An LSTM": (recurrent, "macro_f1"),
    "A U-Net, judged by mIoU": (segmentation, "miou"),
    "A detector with several outputs": (detection, "map50"),
    "A DataLoader and a metric of your own": (loader, "within_one"),
    "An ONNX file": (onnx_file, "accuracy"),
    "Several labels at once": (labels, "multilabel_f1"),
}


def test_all_nine_are_there() -> None:
    """The page and this test know the same cases."""
    assert set(CASES) == set(MADE)
    assert len(CASES) == 9


@pytest.mark.parametrize("case", MADE)
def test_a_case_runs_in_few_lines(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most twelve lines of code, and a file, a score of the named metric, and a report come of it."""
    monkeypatch.chdir(tmp_path)
    code = CASES[case]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    make, metric = MADE[case]
    names = {"torch": torch, **make()}
    if "model" in names:
        names["model"].eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WorkloadWarning)
        warnings.simplefilter("ignore", PipelineWarning)
        exec(compile(code, PAGE.name, "exec"), names)
    result = names["result"]
    assert result.artifact.path.stat().st_size > 0
    assert result.report.workload["metric"] == metric
    score = result.report.shipped.measurement.score
    assert score.low <= score.value <= score.high
    assert (result.artifact.path.parent / "report.html").exists()
    if case == "An ONNX file":
        assert names["unscored"].report.workload["metric"] == "not scored"
    if case == "A detector with several outputs":
        assert any("map" in warning and "not scored" in warning for warning in result.report.warnings)
