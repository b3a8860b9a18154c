"""Workloads that could not be compressed are refused before any work, with what was wanted, got, and the way out."""

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.errors import WorkloadError
from compressor.metrics import Metric
from compressor.running.preflight import BATCHES_READ, check_workload
from compressor.stages import FineTune
from compressor.workload import Workload, predict
from workbench.same_data import same_data

Change = dict[str, Any]


def batches(count: int = 3, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Batches of (size, 4) features with the classes 0, 1, 2, 0, ..."""
    return [(torch.randn(size, 4), torch.arange(size) % 3) for _ in range(count)]


def workload(**changes: Any) -> Workload:
    """A sound workload of 4 features and 3 classes, with the given fields changed."""
    sound = Workload(
        name="small",
        model=nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)),
        example_inputs=torch.randn(2, 4),
        train=batches(),
        calibration=batches(1),
        validation=batches(2),
        test=batches(2),
        loss=F.cross_entropy,
        metric=Metric.accuracy(),
    )
    return dataclasses.replace(sound, **changes)


def refusal(**changes: Any) -> str:
    """The message with which the workload of these changes is refused."""
    with pytest.raises(WorkloadError) as caught:
        check_workload(workload(**changes))
    return str(caught.value)


class OneShot:
    """A loader that gives its batches once and nothing afterwards."""

    def __init__(self) -> None:
        self.left = iter(batches())

    def __iter__(self) -> Iterator[Any]:
        yield from self.left


class Noisy(nn.Module):
    """Dropout that forgets about eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


def test_a_sound_workload_passes_and_is_left_as_it_was(tiny_workload: Workload) -> None:
    """Modes, weights, BatchNorm statistics and the random generator are as before."""
    sound = workload()
    sound.model.train()
    sound.model[1].eval()
    before = copy.deepcopy(sound.model)
    state = torch.get_rng_state()
    check_workload(sound)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in sound.model.modules()] == [m.training for m in before.modules()]
    for old, new in zip(before.state_dict().values(), sound.model.state_dict().values(), strict=True):
        assert torch.equal(old, new)
    check_workload(tiny_workload)


@pytest.mark.parametrize("name", ["train", "calibration", "validation", "test"])
def test_every_set_needs_batches_twice(name: str) -> None:
    """An empty set, a generator, and a loader that is exhausted after one pass are refused by the set's name."""
    assert refusal(**{name: []}).startswith(f"{name} has no batches; give it samples, and check drop_last")
    assert refusal(**{name: iter(batches())}).startswith(f"{name} is a list_iterator, an iterator: passes")
    message = refusal(**{name: OneShot()})
    assert message.startswith(f"{name} gave batches at first and nothing the second time")
    assert "pass a DataLoader" in message.replace("Pass", "pass")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.randn(4, 4), "batch 0 of test: a batch is (inputs, targets) or a dict with labels, got Tensor"),
        ({"x": torch.randn(4, 4)}, "batch 0 of test: a dict batch needs one of"),
        (([1, 2], torch.zeros(2)), "batch 0 of test must consist of tensors, got (int, int)"),
        ((torch.randn(0, 4), torch.zeros(0)), "batch 0 of test holds no samples: float32 (0, 4)"),
        (
            ({"x": torch.randn(4, 4)}, torch.zeros(4).long()),
            "must have the form, types and dimensions of example_inputs",
        ),
        ((torch.randn(4, 4).double(), torch.zeros(4).long()), "float32 (2, 4); got float64 (4, 4)"),
        ((torch.randn(4, 4), torch.zeros(3).long()), "batch 0 of test has 4 samples and targets of shape (3,)"),
    ],
)
def test_batches_in_the_wrong_form_are_refused(batch: Any, message: str) -> None:
    """The message names the set, the batch, what it holds and what was wanted."""
    assert message in refusal(test=[batch])


def test_inputs_that_the_model_does_not_take_are_shown() -> None:
    """The shape that was given, the example's shape and the module's own error stand side by side."""
    message = refusal(validation=[(torch.randn(4, 5), torch.zeros(4).long())])
    assert "Sequential does not take the first batch of validation: float32 (4, 5)" in message
    assert "example_inputs, which it takes, are float32 (2, 4)" in message
    assert "mat1 and mat2 shapes cannot be multiplied (4x5 and 4x8)" in message
    assert "Sequential does not take example_inputs: int64 (2, 4)" in refusal(
        example_inputs=torch.zeros(2, 4, dtype=torch.long)
    )


def test_labels_must_have_an_output_of_their_own() -> None:
    """A label of 3 for 3 outputs is refused with both numbers, in whichever batch it stands; so is -1."""
    wrong = [*batches(2), (torch.randn(2, 4), torch.tensor([1, 3]))]
    message = refusal(train=wrong)
    assert message.startswith("batch 2 of train has labels from 1 to 3, and the model has 3 outputs")
    assert "labels must lie in [0, 2]" in message
    assert "Renumber the labels, or give the model 4 outputs" in message
    ignored = refusal(test=[(torch.randn(2, 4), torch.tensor([0, -1]))])
    assert "labels from -1 to 0" in ignored
    assert (
        "let the loss leave them out (cross_entropy with ignore_index=-1)" in ignored
    )  # no number of outputs has room for them
    assert "wants class indices, got targets of torch.float32" in refusal(test=[(torch.randn(2, 4), torch.zeros(2))])


@pytest.mark.parametrize("kind", [torch.uint16, torch.uint64])
def test_wide_numbers_without_a_sign_are_inputs_and_no_labels(kind: torch.dtype) -> None:
    """Torch holds them and feeds them, and cannot tell which of them are labels: those are converted."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.float() / 100)

    data = [(torch.randint(0, 100, (4, 4)).to(kind), torch.arange(4) % 3) for _ in range(2)]
    sets = dict.fromkeys(("train", "calibration", "validation", "test"), data)
    sound = {"model": Scaled(), "example_inputs": data[0][0], **sets}
    check_workload(workload(**sound))
    message = refusal(train=[(torch.randn(4, 4), (torch.arange(4) % 3).to(kind))] * 2)
    assert f"got targets of {kind}; use targets.long()" in message


def test_only_the_first_batches_of_a_large_set_are_read() -> None:
    """A set of more batches than the cap is not read to its end."""

    class Endless:
        def __iter__(self) -> Iterator[Any]:
            self.read = 0
            while True:
                self.read += 1
                assert self.read <= BATCHES_READ
                yield torch.zeros(3, 4), torch.arange(3)

    check_workload(workload(train=Endless()))


def test_targets_must_be_finite() -> None:
    """NaN among the targets of a regression is refused before it reaches a gradient."""
    data = [(torch.randn(2, 4), torch.tensor([[0.0] * 3, [1.0, torch.nan, 0.0]]))]
    message = refusal(metric=Metric.mse(), loss=F.mse_loss, train=data)
    assert message.startswith("batch 0 of train has targets that are NaN or Inf")


def test_one_class_alone_is_refused() -> None:
    """A training set of a single class cannot say which model is better."""
    message = refusal(train=[(torch.randn(4, 4), torch.ones(4, dtype=torch.long))])
    assert message.startswith("train holds the class 1 alone, and the model has 3 outputs")


def test_training_batches_of_one_are_refused_with_batch_norm() -> None:
    """BatchNorm over features cannot train on one sample; one among larger batches is left out by the training."""
    single, other = [(torch.randn(1, 4), torch.tensor([label])) for label in (1, 2)]
    message = refusal(train=[single, other])
    assert "the batches of train have 1 sample each" in message
    assert "Expected more than 1 value per channel" in message
    assert "Set another batch_size" in message
    for data in ([*batches(1), single], [single, *batches(1)]):
        check_workload(workload(train=data), [FineTune()])


class Masked(nn.Module):
    """Logits of 3 classes that are `fill` where the first number of a sample is negative."""

    def __init__(self, fill: float) -> None:
        super().__init__()
        self.layer, self.fill = nn.Linear(4, 3), fill

    def forward(self, x: Tensor) -> Tensor:
        masked = (x[:, :1] < 0) & torch.tensor([False, True, False])
        return self.layer(x).masked_fill(masked, self.fill)


def answered(fill: float, metric: Metric) -> Change:
    """A workload without labels: its first batch has no masked logit, its second one some."""
    model = Masked(fill).eval()
    inputs = [torch.rand(4, 4), torch.rand(4, 4) - 0.5]
    with torch.no_grad():
        data = [(values, model(values)) for values in inputs]
    sets = dict.fromkeys(("train", "calibration", "validation", "test"), data)
    first = {"example_inputs": inputs[0], "model": model, "metric": metric, "loss": metric.usual_loss()}
    return {**first, **sets}


@pytest.mark.parametrize("metric", [Metric.agreement(), Metric.relative()], ids=lambda metric: metric.name)
def test_masked_logits_are_compared_where_they_are_finite(metric: Metric) -> None:
    """Infinities in what the model itself answers are no faults of data: two models agree on them or they do not."""
    check_workload(workload(**answered(-torch.inf, metric)))


def test_answers_that_cannot_be_compared_are_not_called_targets() -> None:
    """Who gave no labels is told what the model gives, and which metric compares it."""
    message = refusal(**answered(-torch.inf, Metric.mse()))
    assert message.startswith("Masked gives infinities for batch 1 of train, as masked logits are")
    assert "metric='relative' compare what is finite" in message
    assert "target" not in message
    message = refusal(**answered(torch.nan, Metric.relative()))
    assert message.startswith("Masked gives NaN for batch 1 of train")
    assert "target" not in message


def test_complex_outputs_are_refused() -> None:
    """ONNX Runtime has no complex numbers, and no distance to a teacher is one number then."""

    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(self.layer(x))

    message = refusal(model=Spectrum().eval())
    assert "the output must be real numbers" in message
    assert "got complex64 (" in message
    assert "torch.view_as_real()" in message


def test_broken_weights_are_named() -> None:
    """NaN and Inf in weights and buffers are named with their number, five of them at most."""
    model = workload().model
    with torch.no_grad():
        model[0].weight[0, :2] = torch.nan
        model[1].running_mean[3] = torch.inf
    message = refusal(model=model)
    assert "NaN or Inf in 0.weight (2 of 32), 1.running_mean (1 of 8); load" in message
    many = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    for parameter in many.parameters():
        nn.init.constant_(parameter, torch.nan)
    assert "2.weight (16 of 16) and 3 more" in refusal(model=many)


def test_a_model_that_draws_in_eval_mode_is_named() -> None:
    """Functional dropout without self.training is found, and the module in which it sits."""
    message = refusal(model=nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.ReLU(), Noisy()), nn.Linear(8, 3)))
    assert "must give the same output twice in eval mode" in message
    assert "first differ in 1.1 (Noisy)" in message
    assert "training=self.training" in message


def test_outputs_must_be_numbers_for_every_sample() -> None:
    """NaN outputs, outputs without the batch dimension, and outputs that are no tensors are refused."""

    class Broken(nn.Module):
        def __init__(self, answer: Any) -> None:
            super().__init__()
            self.answer = answer

        def forward(self, x: Tensor) -> Any:
            return self.answer(x)

    assert "gives NaN for example_inputs" in refusal(model=Broken(lambda x: (x - 1000).log()))
    assert "one row for each of the 2 samples" in refusal(model=Broken(lambda x: x.mean(0)))
    assert "must return a tensor" in refusal(model=Broken(lambda x: ["text"]))


def test_example_inputs_are_two_samples_of_tensors() -> None:
    """A batch of one, which exporters take for a constant, and lists are refused."""
    assert "at least 2 samples, got float32 (1, 4)" in refusal(example_inputs=torch.randn(1, 4))
    assert "must be a tensor, a tuple of tensors or a dict" in refusal(example_inputs=[torch.randn(2, 4)])


def test_loss_and_metric_must_be_finite_numbers() -> None:
    """A loss that fails or overflows on the first batch is refused with the shapes it was given."""
    message = refusal(loss=F.mse_loss, metric=Metric(name="mine", per_sample=lambda outputs, targets: outputs[:, 7]))
    assert message.startswith("the metric mine, on the first batch of train with outputs float32 (4, 3) and targets")
    assert "fails: IndexError: index 7 is out of bounds" in message
    infinite = refusal(loss=lambda outputs, targets: outputs.sum() * torch.inf)
    assert infinite.startswith("the loss, on the first batch of train")
    assert "must be finite, got" in infinite


@pytest.mark.parametrize("name", ["OptimizedModule", "DistributedDataParallel", "FullyShardedDataParallel"])
def test_wrappers_are_refused_with_the_inner_module(name: str) -> None:
    """What torch.compile and distributed training wrap around a model is to be taken off by the caller."""
    wrapper = type(name, (nn.Sequential,), {})
    message = refusal(model=wrapper(nn.Linear(4, 3)))
    assert message.startswith(
        f"model is wrapped in {name}, which hides the layers from the stages; pass the inner module"
    )


def test_a_compiled_model_is_refused() -> None:
    """torch.compile's own wrapper is recognised."""
    assert "pass the inner module: model._orig_mod" in refusal(model=torch.compile(nn.Linear(4, 3), backend="eager"))


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")  # said by torch
def test_no_network_of_the_zoo_is_refused() -> None:
    """Whatever architecture: models that torch runs, copies and trains pass, with a step of training tried."""
    pytest.importorskip("transformers", reason="the zoo builds networks of transformers: pip install .[dev]")
    from compressor.stages import FineTune
    from workbench.zoo import ARCHITECTURES

    for architecture in ARCHITECTURES:
        model, inputs = architecture.build().eval(), architecture.sample(4)
        with torch.no_grad():
            targets = torch.randn_like(predict(model, inputs))
        data = [(inputs, targets)]
        checked = same_data(model, data, inputs, loss=F.mse_loss, metric=Metric.mse())
        check_workload(checked, [FineTune(epochs=1)])


def test_other_inputs_are_calls_that_the_model_takes() -> None:
    """Each is named by its number, a bare tensor is no collection of calls, and forms may differ from the example's."""
    check_workload(workload(other_inputs=(torch.randn(1, 4), {"input": torch.randn(3, 4)})))
    assert "does not take other_inputs[1]: float32 (2, 5)" in refusal(
        other_inputs=(torch.randn(2, 4), torch.randn(2, 5))
    )
    assert "other_inputs[0] must be a tensor, a tuple" in refusal(other_inputs=(3,))
    with pytest.raises(ValueError, match=r"put them into a tuple: other_inputs=\(inputs,\)"):
        workload(other_inputs=torch.randn(2, 4))


class Recomputed(nn.Module):
    """Wants gradients of what it makes in training, as networks do whose layers are computed again in the backward."""

    def __init__(self, made: str) -> None:
        super().__init__()
        self.made, self.first, self.second = made, nn.Linear(4, 8), nn.Linear(8, 3)
        self.hidden = [nn.Parameter(torch.zeros(8))]  # in a list, where no module sees it

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.made == "input":
            x = x[:, None].squeeze(1).detach().requires_grad_()
        y = self.first(x).relu()
        if self.made == "state":
            y = y + torch.zeros(8, requires_grad=self.training)
        if self.made == "hidden":
            y = y + self.hidden[0]
        return self.second(y)


@pytest.mark.parametrize("made", ["input", "state"])
def test_gradients_of_what_forward_makes_are_its_own_affair(made: str) -> None:
    """Neither a part of the loss nor weights: it trains."""
    from compressor.stages import FineTune

    check_workload(workload(model=Recomputed(made)), [FineTune(epochs=1)])


def test_weights_that_no_module_sees_are_refused() -> None:
    """A parameter in a list would not be trained."""
    from compressor.stages import FineTune

    with pytest.raises(WorkloadError, match=r"float32 \(8,\)"):
        check_workload(workload(model=Recomputed("hidden")), [FineTune(epochs=1)])
