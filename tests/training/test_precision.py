"""Number formats of training: what is float32 whatever happens, and when the inner layers are not."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from compressor.batches import Batches
from compressor.errors import StageError
from compressor.metrics import Metric
from compressor.notes.training import Training, Trainings
from compressor.pruning.schedules import Linear
from compressor.recipe.recipe import Recipe
from compressor.stage import Context
from compressor.stages import Distill, FineTune, PruneChannels, QuantizationAwareTraining, SparseTraining
from compressor.training import precision
from compressor.training.agreement import choose, signal_to_noise_db
from compressor.training.loop import train
from compressor.training.optimizers.choices import SGD, AdamW
from compressor.training.optimizers.schedules import OneCycle
from compressor.training.precision import AutoPrecision, BFloat16, Float32, Form
from compressor.training.progress import EpochLog
from compressor.training.settings import TrainingSettings
from compressor.training.snapshots import capture
from compressor.training.teaching import Teacher
from compressor.training.validation import validation_score
from compressor.workload import Workload, predict
from workbench.comparison import same_weights
from workbench.same_data import same_data


def quiet(folder: Path | None = None) -> Context:
    return Context(progress=False, folder=folder, details={})


def told(context: Context) -> Training:
    note = Trainings.from_json(context.details)
    assert note is not None
    return note.trainings[-1]


def regression(offset: float, *, noise: float = 0.1) -> Workload:
    """A trained model of a function with values of about one, up to `noise`, that lie around `offset`."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    with torch.no_grad():
        model[4].weight.mul_(10)
    x = torch.randn(256, 8, generator=generator)
    with torch.no_grad():
        model[4].bias.fill_(offset)
        y = model(x) + noise * torch.randn(256, 1, generator=generator)
    data = Batches((x, y), batch_size=32, shuffle=True)
    return same_data(model.eval(), data, x[:2], loss=F.mse_loss, metric=Metric.mse())


@pytest.mark.parametrize("offset", [300.0, 1e3, 1e5])
def test_targets_with_an_offset_lose_nothing(offset: float) -> None:
    """Kelvin, hPa, prices: in bfloat16 as in float32 every epoch stays at the noise of the targets, 0.01."""
    workload = regression(offset)
    logs: dict[object, list[EpochLog]] = {}
    for number_format in (BFloat16(), Float32()):
        model, context = copy.deepcopy(workload.model), quiet()
        logs[number_format] = train(
            model,
            workload,
            TrainingSettings(epochs=2, optimizer=SGD(rate=0.01), precision=number_format),
            context=context,
        )
    assert told(context).inner_layers == "float32"
    before = validation_score(workload.model, workload, Form.of(workload.model))
    assert before == pytest.approx(0.01, rel=0.3)
    for ours, plain in zip(logs[BFloat16()], logs[Float32()], strict=True):
        assert ours.score < 1.1 * plain.score
        assert ours.loss < 1.2 * plain.loss


def test_a_teacher_of_offset_targets_answers_in_float32() -> None:
    """The targets that a teacher of a regression gives are what the model computes, to the bit, on any device."""
    workload = regression(300.0)
    inputs, targets = next(iter(workload.train))
    teacher = Teacher(workload.model, workload, BFloat16(), seed=0, remember=False)
    with teacher.form.applied(teacher.model), torch.no_grad():
        answers = teacher.outputs(inputs, targets, position=None)
        assert torch.equal(answers, workload.model(inputs))


class HeadFirst(nn.Module):
    """The head is registered before what feeds it, and something that never runs behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16))
        self.spare = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class LogScale(HeadFirst):
    """Positive outputs over many orders of magnitude, as an exponential."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).exp()


class Residual(nn.Module):
    """What comes out is a sum of two layers, normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 3))
        self.norm = nn.LayerNorm(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.norm(x + self.second(x))


class Tied(nn.Module):
    """The output layer is a product with another layer's weight, which no layer computes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.table = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.inner(x), self.table.weight)


class Towers(nn.Module):
    """Similarities of two embeddings: the product that makes the outputs has no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 16), nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) @ self.right(x[:3]).T


def weight_normed() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), parametrizations.weight_norm(nn.Linear(16, 3)))


def data_of(classes: int) -> Batches:
    generator = torch.Generator().manual_seed(0)
    return Batches((torch.randn(64, 8, generator=generator), torch.arange(64) % classes), batch_size=16)


@pytest.mark.parametrize(
    ("build", "exact", "rounded"),
    [
        (HeadFirst, {"head"}, {"body.0", "body.2"}),
        (LogScale, {"head"}, {"body.0", "body.2"}),
        (Residual, {"first", "second.1", "norm"}, set()),
        (weight_normed, {"2"}, {"0"}),
    ],
)
def test_layers_that_make_the_outputs_stay_float32(
    build: Callable[[], nn.Module], exact: set[str], rounded: set[str]
) -> None:
    """Wherever the head is registered and whatever follows it, it computes in float32, and inner layers in bfloat16."""
    torch.manual_seed(0)
    workload = same_data(build().eval(), data_of(3), torch.randn(2, 8))
    model, kinds, outputs = copy.deepcopy(workload.model), dict[str, torch.dtype](), set()
    names = dict(model.named_modules())

    def objective(model, inputs, targets, position):
        def note(name):
            return lambda module, inputs, output: kinds.__setitem__(name, output.dtype)

        handles = [names[name].register_forward_hook(note(name)) for name in exact | rounded]
        output = predict(model, inputs)
        outputs.add(output.dtype)
        for handle in handles:
            handle.remove()
        return F.cross_entropy(output, targets)

    train(
        model,
        workload,
        TrainingSettings(epochs=1, optimizer=SGD(rate=0.01), precision=BFloat16()),
        context=quiet(),
        objective=objective,
    )
    assert {name for name, kind in kinds.items() if kind == torch.float32} == exact
    assert {name for name, kind in kinds.items() if kind == torch.bfloat16} == rounded
    assert outputs == {torch.float32}
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("build", [Tied, Towers])
def test_outputs_that_no_layer_makes_are_trained_in_float32(build: type[nn.Module], monkeypatch) -> None:
    """A product of the outputs outside of any layer cannot be kept in float32 alone: all is, and a note says why."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    workload = same_data(build().eval(), data_of(3), torch.randn(2, 8))
    context = quiet()
    FineTune(epochs=1).apply(copy.deepcopy(workload.model), workload, context)
    assert told(context).inner_layers == "float32"
    assert "outside of any layer" in told(context).why
    with pytest.raises(StageError, match=r"outside of any layer.*Float32\(\)"):
        FineTune(epochs=1, precision=BFloat16()).apply(copy.deepcopy(workload.model), workload, quiet())


def test_softmax_over_many_classes_gets_float32_logits(monkeypatch) -> None:
    """With a thousand classes the loss sees logits that are not rounded, and equals that of float32 at the start."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1000))
    with torch.no_grad():
        model[2].bias.add_(1000.0)  # what softmax does not see, and bfloat16 rounds to steps of 4
    data = Batches((torch.randn(64, 8), torch.arange(64)), batch_size=64)
    workload = same_data(model.eval(), data, torch.randn(2, 8))
    context = quiet()
    (log,) = train(
        copy.deepcopy(model), workload, TrainingSettings(epochs=1, optimizer=SGD(rate=0.001)), context=context
    )
    assert told(context).inner_layers == "bfloat16"
    inputs, targets = next(iter(data))
    with torch.no_grad():
        assert log.loss == pytest.approx(float(F.cross_entropy(model(inputs), targets)), rel=1e-3)


def test_an_autoencoder_trains_in_bfloat16_with_a_float32_decoder(monkeypatch) -> None:
    """The last transposed convolution of an autoencoder is its output layer."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1), nn.Sigmoid()
    )
    images = torch.rand(64, 1, 8, 8)
    data = Batches((images, images), batch_size=16)
    workload = same_data(model.eval(), data, images[:2], loss=F.mse_loss, metric=Metric.mse())
    choice = choose(model, workload, AutoPrecision(), seed=0)
    assert choice.form.bfloat16
    assert choice.form.float32_layers == ("3",)


class SmallBesideItsMean(nn.Module):
    """A signal of about one rides on an inner offset, which the next layer takes away again."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        with torch.no_grad():
            self.inner.bias.add_(offset)
            self.head.bias.sub_(offset * self.head.weight.sum(dim=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x))


@pytest.mark.parametrize(("offset", "kept"), [(0.0, True), (1e4, False)])
def test_inner_signals_small_beside_their_mean_need_float32(offset: float, kept: bool, monkeypatch) -> None:  # noqa: FBT001
    """The first batch shows that an inner offset of 10 000 leaves no signal in bfloat16; a note has the decibels."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    torch.manual_seed(0)
    workload = same_data(SmallBesideItsMean(offset).eval(), data_of(3), torch.randn(2, 8))
    context = quiet()
    FineTune(epochs=1).apply(copy.deepcopy(workload.model), workload, context)
    note = told(context)
    assert (note.inner_layers == "bfloat16") is kept
    assert (note.signal_to_noise_db > 30) is kept
    assert ("dB around their mean" in note.why) is not kept


def test_a_fit_finer_than_bfloat16_needs_float32() -> None:
    """A regression that is right to a millionth has an error that rounding drowns: the loss of a batch tells."""
    workload = regression(0.0, noise=1e-3)
    with pytest.raises(StageError, match="the loss of a batch is"):
        choose(workload.model, workload, BFloat16(), seed=0)


def test_a_training_that_outgrows_bfloat16_goes_on_in_float32(tmp_path: Path) -> None:
    """What agreed at first is looked at again before every epoch; a killed run that changed over ends the same."""
    workload = regression(0.0, noise=1e-3)
    start = copy.deepcopy(workload.model).requires_grad_(requires_grad=False)
    start[4].bias.requires_grad_()
    with torch.no_grad():
        start[4].bias.add_(0.3)

    def run(model, context, objective=None):
        return train(
            model,
            workload,
            # When it outgrows it follows from the course.
            TrainingSettings(
                epochs=6, optimizer=AdamW(rate=0.04), schedule=OneCycle(warm_up=0.3), precision=BFloat16()
            ),
            context=context,
            objective=objective,
        )

    def dying(model, inputs, targets, position):
        if position.view == 5:
            raise KeyboardInterrupt
        return F.mse_loss(predict(model, inputs), targets)

    steady, resumed, context = copy.deepcopy(start), copy.deepcopy(start), quiet()
    run(steady, context)
    assert told(context).inner_layers == "bfloat16"
    assert "float32 from epoch 2 on" in told(context).why
    with pytest.raises(KeyboardInterrupt):
        run(copy.deepcopy(start), quiet(tmp_path), dying)
    again = quiet(tmp_path)
    run(resumed, again)
    assert same_weights(resumed, steady)
    assert told(again) == told(context)


def test_epochs_are_chosen_by_what_ships(monkeypatch) -> None:
    """The score in the log is that of the float32 model, though it trained in bfloat16."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    workload, context = regression(300.0), quiet()
    model = copy.deepcopy(workload.model)
    logs = train(model, workload, TrainingSettings(epochs=1, optimizer=SGD(rate=0.1)), context=context, keep_last=True)
    assert told(context).inner_layers == "bfloat16"
    with torch.no_grad():
        plain = torch.cat([workload.metric.per_sample(model(x), y) for x, y in workload.validation])
    assert logs[0].score == pytest.approx(workload.metric.aggregate(plain), rel=1e-6)


def test_losses_see_float32(tiny_workload, monkeypatch) -> None:
    """Where the CPU has bfloat16, the forward runs in it, but what the loss computes is float32."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    kinds, inner = set(), set()

    def loss(outputs, targets):
        kinds.update({outputs.dtype, (outputs @ outputs.T).dtype})
        return F.cross_entropy(outputs, targets)

    model = copy.deepcopy(tiny_workload.model)
    handle = model.layer1.register_forward_hook(lambda module, inputs, output: inner.add(output.dtype))
    object.__setattr__(tiny_workload, "loss", loss)
    train(model, tiny_workload, TrainingSettings(epochs=1, optimizer=SGD(rate=0.01)), context=quiet())
    handle.remove()
    assert kinds == {torch.float32}
    assert inner == {torch.float32, torch.bfloat16}  # validation, training
    assert all(tensor.dtype != torch.bfloat16 for tensor in capture(model).values())


class Scaled(nn.Module):
    """A special function inside, which knows no bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.special.erfcx(self.first(x)))


class Remembering(nn.Module):
    """In eval mode it keeps what it computed from a weight until it is set to train."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head, self.kept = nn.Linear(8, 16), nn.Linear(16, 3), None

    def train(self, mode: bool = True) -> nn.Module:  # noqa: FBT001, FBT002 - as torch has it
        if mode:
            self.kept = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.kept if self.kept is not None else self.inner.weight.square().mean()
        if not self.training:
            self.kept = scale
        return self.head(self.inner(x) * scale)


@pytest.mark.parametrize(("build", "inner"), [(Scaled, "float32"), (Remembering, "bfloat16")])
def test_odd_models_train_all_the_same(build: type[nn.Module], inner: str, monkeypatch) -> None:
    """An operator without bfloat16 means float32, with its words; what eval mode remembers disturbs no gradient."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    torch.manual_seed(0)
    workload, context = same_data(build().eval(), data_of(3), torch.randn(2, 8)), quiet()
    FineTune(epochs=2).apply(copy.deepcopy(workload.model), workload, context)
    assert told(context).inner_layers == inner
    assert ("BFloat16" in told(context).why) is (inner == "float32")


@pytest.mark.parametrize(
    ("model", "reason"), [(nn.Linear(8, 3).double(), "not float32"), (nn.RNN(8, 3), "recurrent layers")]
)
def test_recurrent_and_double_models_stay_out_of_bfloat16(model: nn.Module, reason: str, monkeypatch) -> None:
    """A model with a recurrent layer, or with weights that are not float32, trains in its own type."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    workload = same_data(model, data_of(3), torch.randn(2, 8))
    choice = choose(model, workload, AutoPrecision(), seed=0)
    assert not choice.form.bfloat16
    assert reason in choice.why
    with pytest.raises(StageError, match=reason):
        choose(model, workload, BFloat16(), seed=0)


def test_the_layout_follows_the_layers() -> None:
    """Images are laid out channels_last where there is a Conv2d."""
    assert Form.of(nn.Conv2d(2, 2, 1)).channels_last
    assert not Form.of(nn.Linear(2, 2)).channels_last


def test_strided_depthwise_convolutions_stay_out_of_bfloat16() -> None:
    """Under bfloat16 a depthwise convolution with a stride gives float32, and forwards of their own come back."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, stride=2, groups=4), nn.Conv2d(4, 4, 1))
    own = model[1].forward = model[1].forward  # as wrappers leave it
    form = Form(device=torch.device("cpu"), bfloat16=True, channels_last=True)
    seen = []
    for layer in model:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with form.applied(model), form.autocast():
        model(torch.randn(2, 4, 8, 8)).sum().backward()
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert all(layer.weight.grad is not None for layer in model)
    assert model[1].forward == own
    assert "forward" not in vars(model[0])


def test_the_signal_is_what_varies() -> None:
    """By hand: outputs -1 and 1 around 100, off by 0.1, have 20 dB; a constant channel has none, and does not count."""
    exact = torch.tensor([[99.0, 7.0], [101.0, 7.0]])
    assert signal_to_noise_db(exact, exact + torch.tensor([0.1, 0.0]), pooled=False) == pytest.approx(20.0, abs=1e-3)
    assert signal_to_noise_db(exact[:, 1:], exact[:, 1:], pooled=False) == -float("inf")
    # Of a regression's outputs the worst counts, of classes their sum.
    pair = torch.tensor([[100.0, 1.0], [-100.0, -1.0]])
    off = pair + torch.tensor([0.0, 1.0])
    assert signal_to_noise_db(pair, off, pooled=False) == pytest.approx(0.0)
    assert signal_to_noise_db(pair, off, pooled=True) == pytest.approx(40.0, abs=1e-3)
    # Masked classes are minus infinity in both.
    masked = torch.tensor([[-float("inf"), 1.0], [-float("inf"), 3.0]])
    assert signal_to_noise_db(masked, masked + 0.1, pooled=True) == pytest.approx(20.0, abs=1e-3)
    assert signal_to_noise_db(masked, masked.nan_to_num(), pooled=True) == -float("inf")


@pytest.mark.slow
def test_every_stage_that_trains_says_its_format(tiny_workload) -> None:
    """Fine-tuning, distillation, sparse training and training between pruning steps: the report names what was used."""
    number_format = BFloat16()
    stages = [
        FineTune(epochs=1, tail_epochs=0, precision=number_format),
        Distill(epochs=1, tail_epochs=0, precision=number_format),
        SparseTraining(epochs=1, precision=number_format),
        PruneChannels(remove=0.5, align=4, schedule=Linear(steps=3, precision=number_format)),
        QuantizationAwareTraining(epochs=1, precision=number_format),
    ]
    inner = {}
    for stage in stages:
        context = quiet()
        stage.apply(copy.deepcopy(tiny_workload.model), tiny_workload, context)
        trainings = Trainings.from_json(context.details).trainings
        inner[type(stage)] = [training.inner_layers for training in trainings]
    assert inner == {
        FineTune: ["bfloat16"],
        Distill: ["bfloat16"],
        SparseTraining: ["bfloat16"],
        PruneChannels: ["bfloat16", "bfloat16"],
        QuantizationAwareTraining: ["float32"],
    }


def test_recipes_name_the_format() -> None:
    """`precision: bfloat16` in a recipe is the value object, in stages and in schedules."""
    recipe = Recipe.loads(
        "stages:\n"
        "  - prune_channels: {remove: 0.5, schedule: {cubic: {precision: float32}}}\n"
        "  - fine_tune: {precision: bfloat16}\n"
        "  - distill: {precision: auto_precision}\n"
    )
    prune, tune, distill = recipe.stages
    assert prune.schedule.precision == Float32()
    assert tune.precision == BFloat16()
    assert distill.precision == AutoPrecision()
