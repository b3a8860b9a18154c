"""Every score on numbers that are worked out by hand."""

import copy

import pytest
import torch
from torch import nn

from compressor.metrics import Metric
from compressor.pruning.ranking.scope import Global
from compressor.sparsity.layer_inputs import input_columns, unwatched
from compressor.sparsity.layers import sparse_weights
from compressor.sparsity.masks import PerRow
from compressor.sparsity.scores import Case, FirstOrder, Magnitude, Movement, Wanda, copied
from compressor.stage import Context
from compressor.training.loop import train
from compressor.training.optimizers.choices import AdamW
from compressor.training.settings import TrainingSettings
from compressor.workload import Workload


class Line(nn.Module):
    """One linear layer of two inputs and two outputs, without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))

    def forward(self, x):
        return self.layer(x)


INPUTS = torch.tensor([[3.0, 1.0], [4.0, 0.0]])


def linear_loss(outputs, targets):
    """The mean over samples of the first output plus twice the second: its gradient does not depend on weights."""
    return (outputs @ torch.tensor([1.0, 2.0])).mean()


def case_of(model, *, loss=linear_loss, inputs=INPUTS):
    """A case of all weights of `model`, on one batch."""
    targets = torch.zeros(len(inputs), dtype=torch.long)
    data = [(inputs, targets)]
    workload = Workload(
        model=model,
        train=data,
        calibration=data,
        validation=data,
        test=data,
        loss=loss,
        metric=Metric.top_k(1),
        name="line",
        example_inputs=inputs,
    )
    weights, _ = sparse_weights(model, layers=("*",), ignore=())
    return Case(model=model, weights=weights, workload=workload, context=Context(progress=False))


def test_magnitude_by_hand() -> None:
    """The absolute value, or the square that stands for the L2 norm."""
    assert Magnitude().scores(case_of(Line()))["layer.weight"].tolist() == [[1.0, 2.0], [3.0, 0.5]]
    assert Magnitude(norm="l2").scores(case_of(Line()))["layer.weight"].tolist() == [[1.0, 4.0], [9.0, 0.25]]


def test_first_order_by_hand() -> None:
    """The mean input is (3.5, 0.5), so the gradient is that for the first output and twice that for the second."""
    scores = FirstOrder(batches=1).scores(case_of(Line()))["layer.weight"]
    assert torch.allclose(scores, torch.tensor([[3.5**2, 1.0], [21.0**2, 0.5**2]]))


def test_wanda_by_hand() -> None:
    """The inputs' norms are 5 and 1: |w| times them."""
    scores = Wanda(batches=1).scores(case_of(Line()))["layer.weight"]
    assert torch.allclose(scores, torch.tensor([[5.0, 2.0], [15.0, 0.5]]))


def test_movement_is_minus_the_sum_of_weight_times_gradient() -> None:
    """With a gradient that never changes, the scores follow from the weights before every step."""
    model = Line()
    case = copied(case_of(model))
    gradient = torch.tensor([[3.5, 0.5], [7.0, 1.0]])
    seen = []
    trained = copy.deepcopy(model)
    watched = trained.layer.weight
    watched.register_hook(lambda _: seen.append(watched.detach().clone()))
    train(
        trained,
        case.workload,
        TrainingSettings(epochs=2, optimizer=AdamW(rate=0.01)),
        context=Context(progress=False),
        keep_last=True,
    )
    scores = Movement(epochs=2, optimizer=AdamW(rate=0.01)).scores(case)["layer.weight"]
    assert torch.allclose(scores, -sum(gradient * weights for weights in seen))
    assert len(seen) == 2
    # The loss falls with every weight, so positive ones move towards zero and the negative one away from it.
    assert (scores < 0).tolist() == [[True, False], [True, True]]
    assert torch.equal(model.layer.weight, Line().layer.weight)


def test_wanda_of_a_grouped_convolution_is_that_of_its_products() -> None:
    """Each group has norms of its own channels, at every kernel position the input's shifted and padded."""
    layer = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    images = torch.randn(2, 4, 5, 5)
    scores = Wanda(batches=1).scores(case_of(nn.Sequential(layer, nn.Flatten()), inputs=images))["0.weight"]
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    for output, channel, row, column in [(0, 0, 0, 0), (2, 1, 1, 2), (5, 1, 2, 1)]:
        source = channel + (2 if output >= 3 else 0)
        norm = padded[:, source, row : row + 5, column : column + 5].norm()
        wanted = layer.weight[output, channel, row, column].abs() * norm
        assert scores[output, channel, row, column].item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(3, 5, bias=False), (2, 4, 3)),
        (nn.Conv1d(4, 6, 3, stride=2, padding=1, bias=False), (2, 4, 9)),
        (nn.Conv2d(4, 6, (3, 1), padding="same", dilation=2, bias=False), (2, 4, 7, 6)),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", groups=2, bias=False), (2, 4, 5, 5)),
        (nn.Conv3d(2, 4, 2, stride=(1, 2, 1), bias=False), (2, 2, 3, 4, 3)),
    ],
    ids=str,
)
def test_rows_times_columns_are_the_layers_outputs(layer, shape) -> None:
    """The columns are what the layer multiplies its arranged rows by: their product is its output."""
    inputs = torch.randn(shape)
    [weight], _ = sparse_weights(nn.Sequential(layer), layers=("*",), ignore=())
    columns = torch.cat([*input_columns(layer, inputs)], dim=-1)
    rows = weight.arranged(layer.weight.detach()).flatten(1).reshape(len(columns), -1, columns.shape[1])
    products = (rows @ columns).flatten(0, 1)
    outputs = layer(inputs).detach()
    wanted = outputs.reshape(-1, outputs.shape[-1]).T if isinstance(layer, nn.Linear) else outputs.transpose(0, 1)
    assert torch.allclose(products, wanted.reshape(products.shape), atol=1e-5)


@pytest.mark.parametrize("layer", [nn.ConvTranspose2d(4, 4, 2), nn.LSTM(4, 4), nn.Embedding(4, 4)], ids=str)
def test_layers_that_cannot_be_watched_are_named(layer) -> None:
    """Their kind is in the reason."""
    weights, _ = sparse_weights(nn.Sequential(layer), layers=("*",), ignore=())
    assert all(type(layer).__name__ in unwatched(weight) for weight in weights)


def test_layers_without_data_have_no_score() -> None:
    """What calibration data does not reach is left out, and so is what the loss does not reach."""
    model = Line()
    model.spare = nn.Linear(2, 2)
    assert [*Wanda(batches=1).scores(case_of(model))] == ["layer.weight"]
    assert [*FirstOrder(batches=1).scores(case_of(model))] == ["layer.weight"]


def test_what_scores_compare_by_default() -> None:
    """Wanda's compare within an output, as in its paper; the others over the network."""
    assert Wanda().scope == PerRow()
    assert all(score.scope == Global() for score in (Magnitude(), FirstOrder(), Movement()))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Magnitude, {"norm": "l3"}),
        (FirstOrder, {"batches": 0}),
        (Movement, {"epochs": 0}),
        (Wanda, {"batches": 0}),
    ],
)
def test_wrong_settings_are_refused(kind, settings) -> None:
    """Each is refused by its name."""
    with pytest.raises(ValueError, match=next(iter(settings))):
        kind(**settings)
