"""The training loop: schedule, determinism, rollback, resume, what it leaves behind."""

import copy
import math
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.batches import Batches
from compressor.errors import StageError, StorageError, WriteError
from compressor.metrics import Metric
from compressor.progress import bars
from compressor.stage import Context
from compressor.training import precision
from compressor.training.loop import train
from compressor.training.optimizers.choices import SGD, AdamW
from compressor.training.optimizers.schedules import Course, OneCycle
from compressor.training.passes.losses import Position
from compressor.training.progress import EpochLog, best_epoch
from compressor.training.settings import TrainingSettings
from compressor.training.snapshots import capture, read_snapshot
from compressor.workload import Workload, predict
from workbench.comparison import same_weights
from workbench.same_data import same_data

QUIET = Context(progress=False)


def line_workload(model: nn.Module, *, batch_size: int = 4, count: int = 16) -> Workload:
    """Regression on y = 2 x in one dimension, never shuffled."""
    x = torch.linspace(-1, 1, count).unsqueeze(1)
    batches = Batches((x, 2 * x), batch_size=batch_size)
    return same_data(model, batches, x[:2], loss=F.mse_loss, metric=Metric.mse())


def plain_loss(model, inputs, targets, position) -> Tensor:
    return F.cross_entropy(predict(model, inputs).float(), targets)


def test_the_rate_rises_to_its_peak_and_falls_to_a_hundredth() -> None:
    """A cycle starts at 1/25 of the peak, has its peak at 30 %, and ends at 1/100; so does the tail."""
    cycle = OneCycle()
    assert cycle.fraction(0.0) == pytest.approx(0.04)
    assert cycle.fraction(0.3) == pytest.approx(1.0)
    assert cycle.fraction(0.65) == pytest.approx((1 + 0.01) / 2)
    assert cycle.fraction(1.0) == pytest.approx(0.01)
    course = Course(schedule=cycle, updates=10)
    assert course.fraction(9) == pytest.approx(0.01)
    assert course.fraction(10) == pytest.approx(0.01)


def test_training_learns_and_says_how(tiny_workload) -> None:
    """Three epochs and a tail at a hundredth of the peak separate the synthetic classes, and are all in the log."""
    model = copy.deepcopy(tiny_workload.model)
    logs = train(
        model, tiny_workload, TrainingSettings(epochs=3, optimizer=SGD(rate=0.05), tail_epochs=1), context=QUIET
    )
    assert [log.epoch for log in logs] == [0, 1, 2, 3]
    assert logs[-1].learning_rate == pytest.approx(0.0005)
    assert logs[-1].loss < logs[0].loss / 3
    assert max(log.score for log in logs) > 0.8


def test_the_callers_state_is_left_alone(tiny_workload) -> None:
    """Random states, modes, memory layout and the reference model are as before a training."""
    model = copy.deepcopy(tiny_workload.model)
    reference, strides = capture(tiny_workload.model), [tensor.stride() for tensor in model.parameters()]
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002 - the state itself
    train(model, tiny_workload, TrainingSettings(epochs=1, optimizer=SGD(rate=0.05)), context=QUIET)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002 - the same
    assert random.getstate() == states[2]
    assert not any(module.training for module in model.modules())
    assert [tensor.stride() for tensor in model.parameters()] == strides
    assert all(torch.equal(reference[name], value) for name, value in capture(tiny_workload.model).items())


def test_same_seed_same_bits_whatever_was_drawn_before(tiny_workload) -> None:
    """Two trainings of one seed agree to the bit; another seed gives other weights."""
    models = [copy.deepcopy(tiny_workload.model) for _ in range(3)]
    for number, (model, seed) in enumerate(zip(models, (1, 1, 2), strict=True)):
        torch.manual_seed(number)
        train(
            model,
            tiny_workload,
            TrainingSettings(epochs=1, optimizer=SGD(rate=0.05)),
            context=Context(seed=seed, progress=False),
        )
    assert same_weights(models[0], models[1])
    assert not same_weights(models[0], models[2])


def test_one_view_replays_the_same_batches(tiny_workload) -> None:
    """With views=2, epochs 0 and 2 see the same batches in the same order, and epoch 1 others."""
    seen: dict[int, list[float]] = {}

    def objective(model, inputs, targets, position):
        assert isinstance(position, Position)
        seen.setdefault(len(starts), []).append(float(inputs.double().sum()))
        if position.batch == 6:
            starts.append(position.view)
        return plain_loss(model, inputs, targets, position)

    starts: list[int] = []
    model = copy.deepcopy(tiny_workload.model)
    train(
        model,
        tiny_workload,
        TrainingSettings(epochs=3, optimizer=SGD(rate=0.01)),
        context=QUIET,
        objective=objective,
        views=2,
    )
    assert starts == [0, 1, 0]
    assert seen[0] == seen[2] != seen[1]


def test_frozen_parameters_do_not_move(tiny_workload) -> None:
    """A parameter without requires_grad has the same bits after training, and is still frozen."""
    model = copy.deepcopy(tiny_workload.model)
    model.conv1.weight.requires_grad_(requires_grad=False)
    before = capture(model)
    train(model, tiny_workload, TrainingSettings(epochs=1, optimizer=SGD(rate=0.05)), context=QUIET)
    assert torch.equal(model.conv1.weight, before["conv1.weight"])
    assert not model.conv1.weight.requires_grad
    assert not torch.equal(model.linear.weight, before["linear.weight"])


def test_a_frozen_model_is_refused(tiny_workload) -> None:
    """A model without anything to train raises StageError instead of a free success."""
    model = copy.deepcopy(tiny_workload.model).requires_grad_(requires_grad=False)
    with pytest.raises(StageError, match="unfreeze"):
        train(model, tiny_workload, TrainingSettings(epochs=1, optimizer=SGD(rate=0.05)), context=QUIET)


def test_the_best_epoch_follows_the_metrics_direction() -> None:
    """For accuracy the highest score wins, for mse the lowest, and of equals the later."""
    logs = [
        EpochLog(epoch=number, loss=0.0, score=score, learning_rate=0.1, seconds=0.0)
        for number, score in enumerate((0.5, 0.9, 0.2, 0.9, 0.2))
    ]
    assert best_epoch(logs, Metric.accuracy()) == 3
    assert best_epoch(logs, Metric.mse()) == 4


def test_the_best_epochs_state_is_what_remains() -> None:
    """When a later epoch ruins the model, the weights of the best one come back."""
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 2.0)
    nn.init.zeros_(model.bias)
    after_first: dict[str, Tensor] = {}

    def objective(model, inputs, targets, position):
        if position.view == 1 and not after_first:
            after_first.update(capture(model))
        return F.mse_loss(model(inputs), targets) if position.view == 0 else -model(inputs).mean()

    logs = train(
        model,
        line_workload(model),
        TrainingSettings(epochs=2, optimizer=SGD(rate=0.5), weight_decay=0.0),
        context=QUIET,
        objective=objective,
    )
    assert logs[1].score > logs[0].score
    assert torch.equal(model.weight, after_first["weight"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_loss_rolls_back_and_halves_the_rate(tiny_workload, bad: float) -> None:
    """One loss that is not finite costs half the rate, and no NaN is left in the model."""
    model, calls = copy.deepcopy(tiny_workload.model), []

    def objective(model, inputs, targets, position):
        calls.append(position)
        loss = plain_loss(model, inputs, targets, position)
        return loss * bad if len(calls) == 10 else loss

    logs = train(
        model,
        tiny_workload,
        TrainingSettings(epochs=2, optimizer=SGD(rate=0.04), tail_epochs=1),
        context=QUIET,
        objective=objective,
    )
    assert logs[-1].learning_rate == pytest.approx(0.04 / 2 / 100)
    # Epoch 1 was left at its third batch and started again.
    assert [(call.view, call.batch) for call in calls[9:11]] == [(1, 2), (1, 0)]
    assert all(bool(tensor.isfinite().all()) for tensor in capture(model).values())


def test_a_training_that_never_converges_is_given_up(tiny_workload) -> None:
    """After two retries a StageError names epoch, batch, rate and way out; the model is what it was."""
    model = copy.deepcopy(tiny_workload.model)
    before = capture(model)

    def objective(model, inputs, targets, position):
        loss = plain_loss(model, inputs, targets, position)
        return loss * math.nan if position.batch == 1 else loss

    with pytest.raises(
        StageError, match=r"loss in epoch 0, batch 1 is nan.* 0\.02; set optimizer to SGD with a rate below 0\.02"
    ):
        train(
            model,
            tiny_workload,
            TrainingSettings(epochs=1, optimizer=SGD(rate=0.08)),
            context=QUIET,
            objective=objective,
        )
    assert all(torch.equal(before[name], tensor) for name, tensor in capture(model).items())


@pytest.mark.parametrize("killed_at", [1, 2])
def test_a_killed_training_resumes_to_the_same_bits(tiny_workload, tmp_path: Path, killed_at) -> None:
    """A run that dies in an epoch goes on from the last complete one and ends with the uninterrupted run's weights."""
    steady, broken = (copy.deepcopy(tiny_workload.model) for _ in range(2))
    expected = train(
        steady, tiny_workload, TrainingSettings(epochs=3, optimizer=SGD(rate=0.05)), context=QUIET, objective=plain_loss
    )
    seen = []

    def dying(model, inputs, targets, position):
        if position.view == killed_at and position.batch == 3:
            raise KeyboardInterrupt
        return plain_loss(model, inputs, targets, position)

    def watching(model, inputs, targets, position):
        seen.append(position.view)
        return plain_loss(model, inputs, targets, position)

    context = Context(progress=False, folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(
            broken,
            tiny_workload,
            TrainingSettings(epochs=3, optimizer=SGD(rate=0.05)),
            context=context,
            objective=dying,
        )
    resumed = copy.deepcopy(tiny_workload.model)
    logs = train(
        resumed,
        tiny_workload,
        TrainingSettings(epochs=3, optimizer=SGD(rate=0.05)),
        context=context,
        objective=watching,
    )
    assert set(seen) == set(range(killed_at, 3))
    assert [(log.loss, log.score) for log in logs] == [(log.loss, log.score) for log in expected]
    assert same_weights(resumed, steady)


def test_adamw_resumes_to_the_same_bits_too(tmp_path: Path) -> None:
    """The moments and step counts of AdamW are part of the snapshot."""
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 1))
    workload = line_workload(start)

    def dying(model, inputs, targets, position):
        if position.view == 2:
            raise RuntimeError("killed")
        return F.mse_loss(model(inputs), targets)

    def run(model, context, objective=None):
        return train(
            model, workload, TrainingSettings(epochs=4, optimizer=SGD(rate=0.5)), context=context, objective=objective
        )

    steady, resumed = copy.deepcopy(start), copy.deepcopy(start)
    run(steady, QUIET)
    context = Context(progress=False, folder=tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        run(copy.deepcopy(start), context, dying)
    run(resumed, context)
    assert same_weights(resumed, steady)


def test_a_finished_training_is_not_repeated(tiny_workload, tmp_path: Path) -> None:
    """The last snapshot answers the same call without a batch, and not a call with another rate or another model."""
    context = Context(progress=False, folder=tmp_path)
    models, calls = [copy.deepcopy(tiny_workload.model) for _ in range(4)], []

    def counting(model, inputs, targets, position):
        calls.append(position)
        return plain_loss(model, inputs, targets, position)

    def run(model, rate=0.05):
        calls.clear()
        train(
            model,
            tiny_workload,
            TrainingSettings(epochs=1, optimizer=SGD(rate=rate)),
            context=context,
            objective=counting,
            label="a b",
        )
        return len(calls)

    assert run(models[0]) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["a-b.safetensors"]
    assert run(models[1]) == 0
    assert same_weights(models[0], models[1])
    with torch.no_grad():
        models[2].linear.bias.add_(1)
    assert run(models[2]) == 7
    assert run(models[3], rate=0.01) == 7


def test_a_snapshot_of_another_identity_is_refused_with_the_reason(tiny_workload, tmp_path: Path, capsys) -> None:
    """The same settings told in another order are another identity: both are shown, and every batch is trained."""
    seen = []

    def counting(model, inputs, targets, position):
        seen.append(position)
        return plain_loss(model, inputs, targets, position)

    def run(identity: str, *, progress: bool = False) -> int:
        seen.clear()
        context = Context(progress=progress, folder=tmp_path)
        model = copy.deepcopy(tiny_workload.model)
        train(
            model,
            tiny_workload,
            TrainingSettings(epochs=1, optimizer=SGD(rate=0.05)),
            context=context,
            objective=counting,
            identity=identity,
        )
        return len(seen)

    assert run("Distill(epochs=1, views=4)") == 7
    assert run("Distill(epochs=1, views=4)") == 0
    assert run("Distill(views=4, epochs=1)", progress=True) == 7
    shown = capsys.readouterr().err
    assert "identity was 'Distill(epochs=1, views=4)', is 'Distill(views=4, epochs=1)'" in shown
    assert "training.safetensors is of another training and not continued" in shown


@pytest.mark.parametrize("damage", ["cut", "flipped", "of a former version"])
def test_a_damaged_snapshot_is_named_and_not_continued(tiny_workload, tmp_path: Path, capsys, damage: str) -> None:
    """No number of it is used: the training starts again, ends as one without it, and says so."""

    def run(context: Context):
        model = copy.deepcopy(tiny_workload.model)
        train(model, tiny_workload, TrainingSettings(epochs=1, optimizer=SGD(rate=0.01)), context=context)
        return model

    steady = run(Context(progress=False, folder=tmp_path))
    path = tmp_path / "training.safetensors"
    raw = path.read_bytes()
    flipped = raw[:-7] + bytes([raw[-7] ^ 1]) + raw[-6:]
    former = save(load(raw), metadata={"facts": "{}"})
    path.write_bytes({"cut": raw[:-7], "flipped": flipped, "of a former version": former}[damage])
    with pytest.raises(StorageError, match=r"training\.safetensors.*starts again without it"):
        read_snapshot(path)
    assert same_weights(run(Context(progress=True, folder=tmp_path)), steady)
    assert "it is not continued" in capsys.readouterr().err
    assert path.read_bytes() != raw[:-7]
    read_snapshot(path)


def test_a_disk_without_room_for_snapshots_is_found_before_training(tiny_workload, tmp_path, monkeypatch) -> None:
    """The bytes needed and free are named, and nothing was trained."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    model = copy.deepcopy(tiny_workload.model)
    with pytest.raises(WriteError, match=r"training\.safetensors needs [0-9,]+ bytes, but 1,000 bytes are free"):
        train(
            model,
            tiny_workload,
            TrainingSettings(epochs=2, optimizer=SGD(rate=0.1)),
            context=Context(progress=False, folder=tmp_path),
        )
    assert same_weights(model, tiny_workload.model)
    train(model, tiny_workload, TrainingSettings(epochs=1, optimizer=SGD(rate=0.1)), context=Context(progress=False))


def test_a_last_batch_of_one_map_is_trained(tiny_workload) -> None:
    """33 samples in batches of 16 leave a batch of 1, whose maps have values enough for BatchNorm."""
    images = torch.randn(33, 3, 8, 8)
    few = Batches((images, torch.arange(33) % 4), batch_size=16)
    workload = same_data(tiny_workload.model, few, images[:2])
    sizes = []

    def objective(model, inputs, targets, position):
        sizes.append(len(targets))
        return plain_loss(model, inputs, targets, position)

    train(
        copy.deepcopy(workload.model),
        workload,
        TrainingSettings(epochs=1, optimizer=SGD(rate=0.01)),
        context=QUIET,
        objective=objective,
    )
    assert sizes == [16, 16, 1]


def test_data_that_ran_dry_is_refused() -> None:
    """A generator that yields nothing the second time raises StageError instead of training on nothing."""
    model = nn.Linear(1, 1)
    workload = line_workload(model)
    object.__setattr__(workload, "train", iter(workload.train))
    with pytest.raises(StageError, match="iterable again"):
        train(model, workload, TrainingSettings(epochs=1, optimizer=SGD(rate=0.1)), context=QUIET)


def test_fused_updates_in_channels_last_equal_plain_ones(tiny_cnn, monkeypatch) -> None:
    """In float32 one epoch gives what a hand-written loop in NCHW with plain SGD gives."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    torch.manual_seed(0)
    images, targets = torch.randn(32, 3, 8, 8), torch.arange(32) % 4
    data = Batches((images, targets), batch_size=8)
    start = tiny_cnn()
    workload = same_data(start, data, images[:2])
    ours, plain = copy.deepcopy(start), copy.deepcopy(start).train()
    train(ours, workload, TrainingSettings(epochs=1, optimizer=SGD(rate=0.01), weight_decay=0.0), context=QUIET)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.0, momentum=0.9, nesterov=True, fused=False, foreach=False)
    for batch, rate in enumerate(0.01 * Course(schedule=OneCycle(), updates=4).fraction(number) for number in range(4)):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        rows = slice(batch * 8, batch * 8 + 8)
        F.cross_entropy(plain(images[rows]), targets[rows]).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 5.0)
        optimizer.step()
    for name, value in capture(plain).items():
        torch.testing.assert_close(capture(ours)[name], value, rtol=1e-3, atol=1e-5)


def test_a_transformer_with_dict_inputs_trains() -> None:
    """Keyword inputs with a mask, dropout and attention go through the same loop."""

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(11, 8)
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
            hidden = self.encoder(self.embedding(tokens), src_key_padding_mask=mask)
            return {"logits": self.head(hidden[:, 0])}

    torch.manual_seed(0)
    tokens = torch.randint(0, 11, (48, 5))
    inputs = {"tokens": tokens, "mask": torch.zeros(48, 5, dtype=torch.bool)}
    data = Batches((inputs, (tokens[:, 0] > 5).long()), batch_size=8, shuffle=True)
    model = Tagger().eval()
    workload = same_data(model, data, {name: value[:2] for name, value in inputs.items()})
    logs = train(copy.deepcopy(model), workload, TrainingSettings(epochs=12, optimizer=AdamW(rate=0.02)), context=QUIET)
    assert logs[-1].loss < logs[0].loss
    assert logs[-1].score > 0.7


def test_progress_goes_to_stderr_only_when_asked(tiny_workload, capsys, monkeypatch) -> None:
    """With progress a bar with loss and score is written to stderr, where that is a terminal; without, nothing is."""
    train(
        copy.deepcopy(tiny_workload.model),
        tiny_workload,
        TrainingSettings(epochs=1, optimizer=SGD(rate=0.01)),
        context=QUIET,
    )
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(bars, "_DELAY", 0.0)
    for terminal in (False, True):
        assert capsys.readouterr() == ("", "")
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        train(
            copy.deepcopy(tiny_workload.model),
            tiny_workload,
            TrainingSettings(epochs=1, optimizer=SGD(rate=0.01)),
            context=Context(),
        )
    out, err = capsys.readouterr()
    assert out == ""
    assert "training" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "at least 1; got 0"),
        ({"tail_epochs": -1}, "at least 0; got -1"),
        ({"weight_decay": 1.0}, r"in \[0, 1\)"),
    ],
)
def test_impossible_schedules_are_refused(change, message: str) -> None:
    """A schedule that cannot be trained is refused before any work."""
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**change)
