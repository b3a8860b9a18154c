"""The choice between integer forms by time and accuracy, and embeddings whose weights are tied to the output layer."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.errors import StageError
from compressor.estimate import Estimate
from compressor.files.export import export_onnx
from compressor.measuring.timing import Timing
from compressor.quantization import form_choice
from compressor.quantization.file.compact_graph import kernels
from compressor.quantization.form_choice import fastest, smallest_of_ties
from compressor.quantization.grids.schemes import PerBlock, PerTensor, Symmetric  # noqa: F401  # representations name PerTensor
from compressor.quantization.placement.forms import ByFamily, Candidate, Dynamic, Fastest, Float16, Static, WeightOnly
from compressor.quantization.quantizer import quantized_file
from compressor.runtime import predict_batches
from compressor.stage import Context
from compressor.stages import Quantize
from compressor.workload import Workload


class TiedWords(nn.Module):
    """(batch, 6) word numbers -> (batch, 50) logits by the same weights that the words are looked up in."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 24)
        self.recurrent = nn.GRU(24, 24, batch_first=True)
        self.output = nn.Linear(24, 50, bias=False)
        self.output.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.output(self.recurrent(self.words(words))[1][0])


@pytest.fixture(scope="module")
def tied() -> tuple[bytes, Workload]:
    torch.manual_seed(0)
    model = TiedWords().eval()
    words = torch.randint(0, 50, (96, 6))
    with torch.no_grad():
        targets = model(words).argmax(dim=1)
    workload = Workload.from_datasets(model, train=(words, targets), test=(words, targets), calibration_samples=32)
    return export_onnx(model, workload).onnx_bytes, workload


def _context() -> Context:
    return Context(progress=False)


def _outputs(onnx_bytes: bytes, workload: Workload) -> Tensor:
    return torch.cat([output for output, _ in predict_batches(onnx_bytes, workload.validation)])


def _choosing(form: Fastest) -> Quantize:
    stage = Quantize()
    object.__setattr__(stage, "form", form)
    return stage


@dataclass
class Clock:
    """Times by the size of the file: `slowness` milliseconds a file, 1 for files that it does not know."""

    slowness: dict[int, float]
    calls: int = 0

    def __call__(self, candidate: bytes, reference: bytes, inputs: Any, **_: Any) -> Timing:
        self.calls += 1
        ours, theirs = (self.slowness.get(len(data), 1.0) for data in (candidate, reference))
        value = theirs / ours
        return Timing(
            reference_ms=Estimate(theirs, theirs, theirs),
            candidate_ms=Estimate(ours, ours, ours),
            speedup=Estimate(value, 0.95 * value, 1.05 * value),
        )


def _sizes(tied: tuple[bytes, Workload], *forms: Any) -> list[int]:
    return [len(quantized_file(tied[0], replace(Quantize(), form=form), tied[1], _context())) for form in forms]


def test_the_fastest_form_is_taken(tied, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three forms the one that the clock likes most is the file, and every form stands in the details."""
    forms = Dynamic(), WeightOnly(), Float16()
    sizes = _sizes(tied, *forms)
    candidates = tuple(Candidate(form=form) for form in forms)
    for index, form in enumerate(forms):
        clock = Clock({size: 0.5 if place == index else 0.8 for place, size in enumerate(sizes)})
        monkeypatch.setattr(form_choice, "time_interleaved", clock)
        context = _context()
        chosen = fastest(tied[0], _choosing(Fastest(candidates=candidates, max_drop=None)), tied[1], context)
        assert len(chosen) == sizes[index]
        assert context.details["chosen_form"] == repr(form)
        rows = context.details["candidates"]
        assert [row["form"] for row in rows] == [repr(each) for each in forms]
        assert [row["kept"] for row in rows] == [place == index for place in range(3)]
        assert rows[index]["speedup"]["value"] == pytest.approx(2.0)
        assert all("0.62x the speed" in row["why"] for row in rows if not row["kept"])
        assert context.details["sqnr_db"] == rows[index]["sqnr_db"]


def test_of_equally_fast_forms_the_smaller_file_is_taken(tied, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 % more speed with an interval that contains 1 does not pay for a larger file."""
    small, large = _sizes(tied, WeightOnly(), Float16())
    assert small < large
    monkeypatch.setattr(form_choice, "time_interleaved", Clock({small: 0.52, large: 0.5}))
    context = _context()
    candidates = Candidate(form=Float16()), Candidate(form=WeightOnly())
    chosen = fastest(tied[0], _choosing(Fastest(candidates=candidates)), tied[1], context)
    assert len(chosen) == small
    assert context.details["candidates"][0]["why"] == "as fast as WeightOnly(), and not smaller"


def test_ties_are_judged_against_the_leader() -> None:
    """A file that is proved slower is out whatever its size; the first of equal files wins."""
    leader, tie, slower = Estimate(1.0, 1.0, 1.0), Estimate(0.97, 0.93, 1.01), Estimate(0.9, 0.85, 0.95)
    assert smallest_of_ties([leader, tie, slower], [300, 200, 100]) == 1
    assert smallest_of_ties([leader, tie, slower], [200, 200, 100]) == 0


def test_what_loses_accuracy_is_left_out_and_nothing_is_timed(tied, monkeypatch: pytest.MonkeyPatch) -> None:
    """2-bit weights lose more than a point: the float16 file is left, and there is nothing to time."""
    clock = Clock({})
    monkeypatch.setattr(form_choice, "time_interleaved", clock)
    coarse = Candidate(form=WeightOnly(), weights=Symmetric(bits=2, granularity=PerBlock(size=16)))
    context = _context()
    fastest(tied[0], _choosing(Fastest(candidates=(coarse, Candidate(form=Float16())))), tied[1], context)
    assert clock.calls == 0
    assert context.details["chosen_form"] == "Float16()"
    reason = context.details["candidates"][0]["why"]
    assert "of accuracy, at most 0.01 is allowed" in reason or "quantization broke the model" in reason


def test_noise_bounds_the_choice_and_an_empty_one_is_refused(tied) -> None:
    """No form keeps 150 dB; the error says what each of them keeps."""
    form = Fastest(candidates=(Candidate(form=Float16()), Candidate(form=Dynamic())), min_sqnr_db=150)
    message = r"no form is left to choose from: Float16\(\): keeps \d+\.\d dB, at least 150 are asked for; Dynamic\(\)"
    with pytest.raises(StageError, match=message):
        fastest(tied[0], _choosing(form), tied[1], _context())


def test_the_same_file_is_timed_once(tied, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two forms that come to the same file are one candidate, and the report says so."""
    clock = Clock({})
    monkeypatch.setattr(form_choice, "time_interleaved", clock)
    candidates = Candidate(form=Dynamic()), Candidate(form=Dynamic(), weights=Symmetric())
    context = _context()
    fastest(tied[0], _choosing(Fastest(candidates=candidates)), tied[1], context)
    assert clock.calls == 0
    assert context.details["candidates"][1]["why"] == "the same file as Dynamic()"


def test_a_form_that_fails_unforeseen_is_left_out(tied, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of a library that one form meets is its reason; without memory, the choice ends."""
    made = form_choice.quantized_file
    raised: list[Exception] = [IndexError("tuple index out of range"), MemoryError()]

    def failing(exported: bytes, settings: Any, *rest: Any) -> bytes:
        if isinstance(settings.form, Dynamic):
            raise raised.pop(0)
        return made(exported, settings, *rest)

    monkeypatch.setattr(form_choice, "quantized_file", failing)
    form = _choosing(Fastest(candidates=(Candidate(form=Dynamic()), Candidate(form=Float16()))))
    context = _context()
    fastest(tied[0], form, tied[1], context)
    assert context.details["chosen_form"] == "Float16()"
    assert context.details["candidates"][0]["why"] == "it fails (IndexError: tuple index out of range)"
    with pytest.raises(MemoryError):
        fastest(tied[0], form, tied[1], _context())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"candidates": ()}, "at least one"),
        ({"max_drop": 50}, r"one point of accuracy\), in \[0, 1\); got 50; did you mean 0\.5\?"),
        ({"min_sqnr_db": 0}, "ratio in decibels, above 0; got 0"),
    ],
)
def test_impossible_choices_are_refused(arguments: dict, message: str) -> None:
    """Bad values are refused where they are given."""
    with pytest.raises(ValueError, match=message):
        Fastest(**arguments)


def test_blocks_are_refused_where_no_kernel_takes_them() -> None:
    """A scale per block belongs to float activations, and the error says which form has them."""
    with pytest.raises(ValueError, match=r"Use form=WeightOnly\(\)"):
        Candidate(form=Dynamic(), weights=Symmetric(granularity=PerBlock(size=32)))


def test_representation_rebuilds_the_choice() -> None:
    """eval(repr(x)) == x, for reports."""
    assert eval(repr(Fastest())) == Fastest()  # noqa: S307  # the promise of every value object


@pytest.mark.parametrize("form", [ByFamily(), Dynamic(), Static(), WeightOnly(), Float16()])
def test_tied_words_survive_every_form(tied, form: Any) -> None:
    """The shared table works for the lookup and for the product: more than 30 dB, and every word found again."""
    exported, workload = tied
    quantized = quantized_file(exported, replace(Quantize(), form=form), workload, _context())
    expected, got = _outputs(exported, workload), _outputs(quantized, workload)
    noise = (got - expected).square().mean() / expected.square().mean()
    assert -10 * math.log10(noise) > 30
    assert (got.argmax(dim=1) == expected.argmax(dim=1)).float().mean() > 0.9


def test_tied_words_are_stored_once(tied) -> None:
    """Lookup and product share their integers in the file, and the product still runs on them."""
    exported, workload = tied
    quantized = quantized_file(exported, replace(Quantize(portable=None), form=Dynamic()), workload, _context())
    table = 50 * 24
    shared = [tensor for tensor in _initializers(quantized) if math.prod(tensor.dims) == table]
    assert len(shared) == 1
    assert kernels(quantized)["DynamicQuantizeMatMul"] == 2
    assert not kernels(quantized)["Transpose"] - kernels(exported)["Transpose"]


def _initializers(onnx_bytes: bytes) -> list[Any]:
    import onnx

    return list(onnx.load_from_string(onnx_bytes).graph.initializer)
