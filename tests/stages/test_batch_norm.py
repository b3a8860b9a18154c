"""ReestimateBatchNorm: statistics of the model as it is now."""

import pytest
import torch
from torch import Tensor, nn

from compressor.batches import Batches
from compressor.errors import StageError
from compressor.stage import Context, Effect
from compressor.stages.batch_norm import ReestimateBatchNorm
from compressor.workload import Workload
from workbench.same_data import same_data


def workload_of(model: nn.Module, inputs: Tensor, *, batch_size: int = 2) -> Workload:
    data = Batches((inputs, torch.zeros(len(inputs), dtype=torch.long)), batch_size=batch_size)
    return same_data(model, data, inputs[:2])


def test_statistics_are_plain_averages_over_batches() -> None:
    """Batches (1, 3) and (5, 9) have means 2 and 7, unbiased variances 2 and 8: the averages are 4.5 and 5."""
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 2)).eval()
    model[0].running_mean.fill_(100.0)
    context = Context(progress=False)
    inputs = torch.tensor([[1.0], [3.0], [5.0], [9.0]])
    ReestimateBatchNorm().apply(model, workload_of(model, inputs), context)
    assert model[0].running_mean.item() == pytest.approx(4.5)
    assert model[0].running_var.item() == pytest.approx(5.0)
    assert context.details == {"layers": 1, "batches": 2, "unreached": []}


def test_only_the_given_number_of_batches_is_read() -> None:
    """With batches=1 the statistics are those of the first batch."""
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 2)).eval()
    inputs = torch.tensor([[1.0], [3.0], [5.0], [9.0]])
    ReestimateBatchNorm(batches=1).apply(model, workload_of(model, inputs), Context(progress=False))
    assert model[0].running_mean.item() == pytest.approx(2.0)
    assert model[0].running_var.item() == pytest.approx(2.0)


def test_weights_momentum_and_modes_stay_and_dropout_is_off() -> None:
    """Only running statistics change: a dropout of everything before the layer would give mean 0, and does not."""
    model = nn.Sequential(nn.Dropout(1.0), nn.BatchNorm1d(1, momentum=0.3), nn.Linear(1, 2)).eval()
    before = {name: value.clone() for name, value in model.named_parameters()}
    inputs = torch.tensor([[1.0], [3.0], [5.0], [9.0]])
    ReestimateBatchNorm().apply(model, workload_of(model, inputs), Context(progress=False))
    assert model[1].running_mean.item() == pytest.approx(4.5)
    assert model[1].momentum == 0.3
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert all(value.requires_grad and value.grad is None for value in model.parameters())


def test_wrong_statistics_of_a_network_are_repaired(trained_workload) -> None:
    """A trained network with its statistics wiped out recovers its validation accuracy."""
    model = trained_workload.model
    inputs, targets = next(iter(trained_workload.validation))
    with torch.no_grad():
        before = trained_workload.metric.score(model(inputs), targets)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.fill_(3.0)
                module.running_var.fill_(25.0)
        broken = trained_workload.metric.score(model(inputs), targets)
        ReestimateBatchNorm().apply(model, trained_workload, Context(progress=False))
        after = trained_workload.metric.score(model(inputs), targets)
    assert broken < before - 0.2
    assert after > before - 0.05


def test_a_layer_that_no_batch_reaches_keeps_its_statistics() -> None:
    """Resetting a layer that then sees nothing would destroy it; it is left alone and listed."""

    class Partial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(1), nn.BatchNorm1d(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Partial().eval()
    model.unused.running_mean.fill_(7.0)
    context = Context(progress=False)
    ReestimateBatchNorm().apply(model, workload_of(model, torch.tensor([[1.0], [3.0]])), context)
    assert model.unused.running_mean.item() == 7.0
    assert context.details["unreached"] == ["unused"]


def test_nothing_to_re_estimate_is_refused() -> None:
    """A model without BatchNorm, or whose BatchNorm keeps no statistics, raises StageError."""
    for model in (nn.Linear(1, 2), nn.BatchNorm1d(1, track_running_stats=False)):
        with pytest.raises(StageError, match="no BatchNorm with running statistics"):
            ReestimateBatchNorm().apply(model, workload_of(model, torch.ones(4, 1)), Context(progress=False))


def test_batches_of_one_are_refused() -> None:
    """One sample has no variance."""
    model = nn.BatchNorm1d(1)
    with pytest.raises(StageError, match="at least 2 values a channel"):
        ReestimateBatchNorm().apply(model, workload_of(model, torch.ones(4, 1), batch_size=1), Context(progress=False))
    with pytest.raises(ValueError, match="at least 1; got 0"):
        ReestimateBatchNorm(batches=0)


def test_activations_that_are_not_finite_are_refused() -> None:
    """A broken model is named as such instead of shipping NaN statistics."""
    model = nn.BatchNorm1d(1)
    inputs = torch.tensor([[1.0], [float("inf")]])
    with pytest.raises(StageError, match="not finite"):
        ReestimateBatchNorm().apply(model, workload_of(model, inputs), Context(progress=False))


def test_re_estimation_is_a_stage_that_survives_its_repr() -> None:
    """The stage changes values only, and eval(repr(stage)) gives it back."""
    stage = ReestimateBatchNorm(batches=7)
    assert stage.effect is Effect.VALUES
    assert eval(repr(stage)) == stage  # noqa: S307 - the promise under test
