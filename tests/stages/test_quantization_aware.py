"""Training of quantized graphs: what it promises of the file, of earlier stages' work, and of killed runs."""

import copy
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from compressor import stages
from compressor.errors import StageError
from compressor.quantization.grids.schemes import Asymmetric, PerBlock, PerChannel, PerTensor, Symmetric
from compressor.quantization.placement.forms import Dynamic, Float16
from compressor.runtime import OnnxModule
from compressor.stage import Context, Effect, Stage
from compressor.stages import quantization_aware
from compressor.stages.quantization import Quantize
from compressor.stages.quantization_aware import QuantizationAwareTraining
from compressor.target import Isa, Target
from compressor.training.optimizers.choices import AdamW
from compressor.workload import Workload
from workbench.predictions import predict_all

SHORT = {"epochs": 2, "optimizer": AdamW(rate=4e-4)}


class Reader(nn.Module):
    """Words, an LSTM in both directions and four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.recurrent = nn.LSTM(16, 12, batch_first=True, bidirectional=True)
        self.last = nn.Linear(24, 4)

    def forward(self, words: Tensor) -> Tensor:
        return self.last(self.recurrent(self.words(words))[0].mean(dim=1))


def sentences(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of seven words; the class is the commonest remainder of their numbers by 4, of equals the smallest."""
    words = torch.randint(0, 20, (count, 7), generator=torch.Generator().manual_seed(seed))
    return words, F.one_hot(words % 4, 4).sum(dim=1).argmax(dim=1)


@pytest.fixture(scope="module")
def _reader() -> Reader:
    torch.manual_seed(0)
    model = Reader()
    words, targets = sentences(1024, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(10):
        for batch in torch.randperm(1024).split(128):
            optimizer.zero_grad()
            F.cross_entropy(model(words[batch]), targets[batch]).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture
def reading(_reader: Reader) -> Workload:
    return Workload.from_datasets(
        copy.deepcopy(_reader),
        train=sentences(256, seed=1),
        test=sentences(128, seed=2),
        batch_size=64,
        calibration_samples=64,
        name="reading",
    )


def integers_of(module: nn.Module, shape: tuple[int, ...]) -> list[torch.Tensor]:
    assert isinstance(module, OnnxModule)
    model = onnx.load_from_string(module.onnx_bytes)
    arrays = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    return [torch.from_numpy(array.astype("int8")) for array in arrays if array.shape == shape]


def test_two_bit_weights_recover(trained_workload: Workload) -> None:
    """Weights of two bits, which rounding alone breaks, learn to do their work; the file holds what was trained."""
    scheme = Symmetric(bits=2)
    with pytest.raises(StageError, match="are needed; use weights of more bits, calibrate"):
        Quantize(weights=scheme).apply(trained_workload.model, trained_workload, Context(progress=False))
    context = Context(progress=False)
    stage = QuantizationAwareTraining(weights=scheme, epochs=8, optimizer=AdamW(rate=4e-3))
    trained = stage.apply(copy.deepcopy(trained_workload.model), trained_workload, context)
    assert isinstance(trained, OnnxModule)
    outputs, targets = predict_all(trained.onnx_bytes, trained_workload.train)
    assert float((outputs.argmax(1) == targets).float().mean()) > 0.9
    assert len(context.details["epochs"]) == 8
    assert context.details["agreement"]["torch_to_file"] < 0.002
    assert context.details["form"]["weight_bits"] == 2
    assert context.details["left_in_float"] == []


def test_full_width_for_another_cpu_is_trained_on_this_one(trained_workload: Workload) -> None:
    """Eight bits for a CPU with VNNI are compared with what that CPU computes, though this one may saturate."""
    context = Context(progress=False, target=Target(isa=Isa.X86_VNNI))
    QuantizationAwareTraining(epochs=1).apply(copy.deepcopy(trained_workload.model), trained_workload, context)
    assert context.details["form"]["weight_bits"] == 8
    assert context.details["agreement"]["torch_to_file"] < 0.002
    assert context.details["checked_cpus"]["products_that_may_saturate"]


def test_zeros_of_a_pruned_model_stay_zero(trained_workload: Workload) -> None:
    """The integers of weights that were zero are zero after training, at full width of the rest."""
    model = copy.deepcopy(trained_workload.model)
    weight = model.get_submodule("layer1.0.conv1").weight
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad():
        weight[mask] = 0
    stage = QuantizationAwareTraining(**SHORT)
    trained = stage.apply(model, trained_workload, Context(progress=False))
    candidates = [
        integers for integers in integers_of(trained, tuple(weight.shape)) if bool((integers[mask] == 0).all())
    ]
    assert len(candidates) == 1
    assert float((candidates[0] != 0).float().mean()) > 0.45


def test_clusters_of_an_earlier_stage_stay_together(trained_workload: Workload) -> None:
    """Weights that were equal within an output channel are equal integers after training."""
    model = copy.deepcopy(trained_workload.model)
    weight = model.get_submodule("layer2.1.conv1").weight
    assignment = torch.randint(0, 6, weight.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        weight.copy_(torch.linspace(-0.1, 0.12, 6)[assignment])
    stage = QuantizationAwareTraining(**SHORT)
    trained = stage.apply(model, trained_workload, Context(progress=False))

    def tied(integers: torch.Tensor) -> bool:
        return all(len(integers[c][assignment[c] == k].unique()) == 1 for c in range(len(weight)) for k in range(6))

    assert [tied(integers) for integers in integers_of(trained, tuple(weight.shape))].count(True) == 1


def test_two_bit_lstm_recovers(reading: Workload) -> None:
    """An LSTM, its table of words and its last layer learn on two bits, and run on ONNX Runtime's integer kernels."""
    scheme = Symmetric(bits=2, granularity=PerTensor())

    def accuracy(stage: Stage, context: Context) -> float:
        module = stage.apply(copy.deepcopy(reading.model), reading, context)
        assert isinstance(module, OnnxModule)
        outputs, targets = predict_all(module.onnx_bytes, reading.train)
        return float((outputs.argmax(1) == targets).float().mean())

    context = Context(progress=False)
    rounded = accuracy(Quantize(weights=scheme), Context(progress=False))
    trained = accuracy(QuantizationAwareTraining(weights=scheme, epochs=8, optimizer=AdamW(rate=4e-3)), context)
    assert rounded < 0.9
    assert trained > 0.94
    assert context.details["integer_kernels"] == {"DynamicQuantizeLSTM": 1, "DynamicQuantizeMatMul": 1}
    assert context.details["left_in_float"] == []
    assert context.details["agreement"]["torch_to_file"] < 0.002


def test_zeros_and_clusters_of_an_lstm_survive(reading: Workload) -> None:
    """Of recurrent weights, too, zeros stay zero and what was equal is one integer after training."""
    inputs, states = reading.model.recurrent.weight_ih_l0, reading.model.recurrent.weight_hh_l0
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(inputs.shape, generator=generator) < 0.5
    assignment = torch.randint(0, 6, states.shape, generator=generator)
    with torch.no_grad():
        inputs[mask] = 0
        states.copy_(torch.linspace(-0.5, 0.6, 6)[assignment])
        reading.model.recurrent.weight_hh_l0_reverse.copy_(states)
    stage = QuantizationAwareTraining(weights=Symmetric(granularity=PerTensor()), **SHORT)
    trained = stage.apply(copy.deepcopy(reading.model), reading, Context(progress=False))
    # The file holds (directions, inputs, gates), and ONNX's gates are i, o, f, c where torch's are i, f, g, o.
    order = [torch.arange(12) + 12 * gate for gate in (0, 3, 1, 2)]
    ours, theirs = (integers_of(trained, (2, size, 48))[0][0].T for size in (16, 12))
    pruned, clusters = mask[torch.cat(order)], assignment[torch.cat(order)]
    assert bool((ours[pruned] == 0).all())
    assert float((ours[~pruned] != 0).float().mean()) > 0.9
    assert [len(theirs[clusters == number].unique()) for number in range(6)] == [1] * 6


def test_killed_run_resumes_to_the_same_bits(
    trained_workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that dies in its second epoch goes on from the first and ends with the file of an unbroken one."""
    stage = QuantizationAwareTraining(**SHORT)
    whole = stage.apply(trained_workload.model, trained_workload, Context(progress=False))
    original = quantization_aware.train
    seen: list[tuple[int, int]] = []

    def watched(*args: Any, objective: Any, **kwargs: Any) -> Any:
        def watching(model: Any, inputs: Any, targets: Any, position: Any) -> Any:
            seen.append((position.view, position.batch))
            if seen.count((1, 3)) == 1 and position.view == 1 and position.batch == 3:
                raise RuntimeError("killed")
            return objective(model, inputs, targets, position)

        return original(*args, objective=watching, **kwargs)

    monkeypatch.setattr(quantization_aware, "train", watched)
    with pytest.raises(RuntimeError, match="killed"):
        stage.apply(trained_workload.model, trained_workload, Context(progress=False, folder=tmp_path))
    died = len(seen)
    resumed = stage.apply(trained_workload.model, trained_workload, Context(progress=False, folder=tmp_path))
    assert seen[died] == (1, 0)
    assert isinstance(whole, OnnxModule)
    assert isinstance(resumed, OnnxModule)
    assert resumed.onnx_bytes == whole.onnx_bytes


def test_is_a_stage_that_encodes() -> None:
    """It keeps the stage protocol: an encoding with a repr that gives it back."""
    stage = QuantizationAwareTraining(weights=Symmetric(bits=4), form=Dynamic(), skip=("conv1",))
    assert isinstance(stage, Stage)
    assert stage.effect is Effect.ENCODING
    assert eval(repr(stage), vars(stages)) == stage  # noqa: S307 - the promise is that eval works


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"temperature": 0}, "temperature divides the logits, usually by 1 to 2, above 0; got 0"),
        ({"soft_weight": 90}, "soft_weight is the teacher's fraction of the loss, in .*; got 90; did you mean 0.9?"),
        ({"form": Float16()}, r"form is what is trained, ByFamily.*; got Float16\(\)\. .* use Quantize"),
        ({"epochs": 0}, "epochs counts the passes over the training data, at least 1; got 0"),
        ({"weights": Symmetric(bits=16)}, "weights can have 2 to 8 bits, .*got bits=16"),
        ({"activations": Asymmetric(bits=4)}, "activations can have 8 or 16 bits, .*got bits=4"),
        ({"weights": Asymmetric(granularity=PerChannel())}, "Use (Symmetric|PerChannel)"),
        ({"weights": Symmetric(granularity=PerBlock(size=32))}, "Use (Symmetric|PerChannel)"),
    ],
)
def test_impossible_parameters_are_refused(parameters: dict[str, Any], message: str) -> None:
    """What cannot work is refused when the stage is made, with the value and the way out."""
    with pytest.raises(ValueError, match=message):
        QuantizationAwareTraining(**parameters)
