"""Criteria: what each layer's weights, gradients and activations are worth, on networks small enough for a pencil."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.batches import Batches
from compressor.pruning.ranking.criteria import (
    FPGM,
    L1,
    L2,
    LAMP,
    Activation,
    BatchNormScale,
    Hessian,
    Random,
    Taylor,
)
from compressor.pruning.ranking.criterion import Criterion, across_groups, channel_scores, unranked
from compressor.pruning.ranking.gradients import empirical_fisher, loss_gradients
from compressor.structure.couplings import Coupled, Part
from compressor.structure.graph import trace_structure
from compressor.structure.tensor_ids import mask_
from compressor.workload import Workload
from workbench.same_data import same_data
from workbench.tiny import TinyResNet, make_workload, synthetic_images

EVERY = [L1(), L2(), FPGM(), LAMP(), BatchNormScale(), Taylor(), Hessian(samples=8), Activation(), Random()]


@dataclass(frozen=True)
class Graph:
    """A graph of groups written down by hand."""

    groups: tuple[Coupled, ...]


def part(module: str, *tensors: tuple[str, int], count: int, per: int = 1, makes: bool = False, norm: bool = False):
    """A part whose `per` neighbouring indices belong to one of `count` channels."""
    return Part(
        module=module,
        tensors=tuple((f"{module}.{name}" if module else name, dim) for name, dim in tensors),
        indices=tuple(range(count * per)),
        channels=tuple(index // per for index in range(count * per)),
        makes=makes,
        is_norm=norm,
    )


def one_group(width: int, *parts: Part) -> Graph:
    return Graph((Coupled(name="group", width=width, parts=parts, makes_output=False, opaque=False),))


def gated(module: str, gates: int, hidden: int) -> Part:
    """The rows of a recurrent layer: gate blocks of `hidden` rows each."""
    rows = part(
        module, ("weight_ih_l0", 0), ("weight_hh_l0", 0), ("bias_ih_l0", 0), ("bias_hh_l0", 0), count=gates * hidden
    )
    return replace(rows, channels=tuple(row % hidden for row in range(gates * hidden)), makes=True)


def workload_of(model: nn.Module, inputs: Tensor, targets: Tensor | None = None, loss=None) -> Workload:
    targets = torch.arange(len(inputs)) % 2 if targets is None else targets
    data = Batches((inputs, targets), batch_size=2)
    return same_data(model, data, inputs[:2], loss=loss or F.cross_entropy)


def score(criterion: Criterion, model: nn.Module, graph: Graph, workload: Workload | None = None) -> list[float]:
    workload = workload or workload_of(model, torch.zeros(2, 4))
    return channel_scores(criterion, model.eval(), graph, workload, 0)["group"].tolist()


def mlp(*diagonal: float) -> nn.Sequential:
    """4 -> 4 -> 2 whose hidden units read one input each, with these weights."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor(diagonal)))
        model[0].bias.zero_()
    return model


def hidden_units() -> Graph:
    return one_group(4, part("0", ("weight", 0), ("bias", 0), count=4, makes=True), part("2", ("weight", 1), count=4))


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (L1(), [1, 2, 3, 4]),
        (L2(), [1, 2, 3, 4]),
        (LAMP(), [1 / 30, 4 / 29, 9 / 25, 1]),
        (
            FPGM(),
            [5**0.5 + 10**0.5 + 17**0.5, 5**0.5 + 13**0.5 + 20**0.5, 10**0.5 + 13**0.5 + 5, 17**0.5 + 20**0.5 + 5],
        ),
    ],
)
def test_linear_units_are_judged_by_the_weights_that_make_them(criterion: Criterion, expected: list[float]) -> None:
    """Units of weights 1, -2, 3 and 4, each on an axis of its own."""
    assert score(criterion, mlp(1, -2, 3, 4), hidden_units()) == pytest.approx(expected)


def test_coupled_layers_count_by_their_mean() -> None:
    """Filters of 9 ones and of 9 twos beside filters of 18 and 9 ones: (9 + 18) / 2 and (18 + 9) / 2."""
    model = nn.ModuleDict({"a": nn.Conv2d(1, 2, 3), "b": nn.Conv2d(2, 2, 3)})
    with torch.no_grad():
        model["a"].weight.copy_(torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1).expand(2, 1, 3, 3))
        model["b"].weight.copy_(torch.tensor([1.0, 0.5]).reshape(2, 1, 1, 1).expand(2, 2, 3, 3))
    graph = one_group(2, *(part(name, ("weight", 0), ("bias", 0), count=2, makes=True) for name in "ab"))
    assert score(L1(), model, graph) == [13.5, 13.5]


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_units_are_judged_by_all_gates(kind: type[nn.RNNBase], gates: int) -> None:
    """Rows of 3 inputs and 2 states: ones for unit 0, twos for unit 1, in every gate."""
    model = nn.Sequential(kind(3, 2))
    with torch.no_grad():
        for name in ("weight_ih_l0", "weight_hh_l0"):
            weight = getattr(model[0], name)
            weight.copy_(torch.tensor([1.0, 2.0]).repeat(gates)[:, None].expand_as(weight))
    graph = one_group(2, gated("0", gates, 2), part("0", ("weight_hh_l0", 1), count=2))
    assert score(L1(), model, graph) == [5 * gates, 10 * gates]
    assert score(L2(), model, graph) == pytest.approx([(5 * gates) ** 0.5, (20 * gates) ** 0.5])
    assert score(FPGM(), model, graph) == pytest.approx([(5 * gates) ** 0.5] * 2)


def test_heads_are_judged_whole() -> None:
    """Two heads of two rows each: ones and threes over 4 inputs."""
    model = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 1.0, 3.0, 3.0])[:, None].expand(4, 4))
    graph = one_group(2, part("0", ("weight", 0), ("bias", 0), count=2, per=2, makes=True))
    assert score(L1(), model, graph) == [8, 24]
    assert score(L2(), model, graph) == pytest.approx([8**0.5, 72**0.5])
    assert score(FPGM(), model, graph) == pytest.approx([32**0.5] * 2)


def test_uneven_units_are_compared_as_if_filled_with_zeros() -> None:
    """A unit of rows (1) and (2) and one of the row (1) differ by the 2."""
    model = nn.Sequential(nn.Linear(1, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [2.0], [1.0]]))
    rows = replace(part("0", ("weight", 0), count=3, makes=True), channels=(0, 0, 1))
    assert score(FPGM(), model, one_group(2, rows)) == [2, 2]


def test_what_no_layer_makes_is_judged_by_all_its_weights() -> None:
    """An embedding's features count by its columns: |1| + |3| and |2| + |4|."""
    model = nn.Sequential(nn.Embedding(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    assert score(L1(), model, one_group(2, part("0", ("weight", 1), count=2))) == [4, 6]


def test_fisher_is_the_mean_of_the_squared_gradients() -> None:
    """Gradients 1, 3 and 5: the mean square is 35/3 sample by sample; pairs summed give (1 + 3)^2 / 2."""
    model = nn.Linear(1, 1, bias=False)
    data = torch.tensor([[1.0], [3.0], [5.0], [7.0]])
    workload = workload_of(model, data, torch.zeros(4), loss=lambda outputs, _: outputs.mean())
    assert empirical_fisher(model, workload, 3, 1, 0)["weight"].item() == pytest.approx(35 / 3)
    assert empirical_fisher(model, workload, 2, 2, 0)["weight"].item() == pytest.approx(8)
    assert empirical_fisher(model, workload, 99, 1, 0)["weight"].item() == pytest.approx(84 / 4)
    assert loss_gradients(model, workload, 2, 0)["weight"].item() == pytest.approx(2 + 6)
    assert model.weight.grad is None


def test_hessian_by_hand() -> None:
    """For the loss mean(u . relu(W x)) with u = 1 and one sample x = (1, 1, 1, 1): half of w^2, from both layers."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([1.0, 2.0, 3.0, -4.0])))
        model[2].weight.fill_(1.0)
    workload = workload_of(model, torch.ones(2, 4), loss=lambda outputs, _: outputs.mean())
    graph = one_group(4, part("0", ("weight", 0), count=4, makes=True), part("2", ("weight", 1), count=4))
    # dL/dW[i, i] = u[i] = 1 and dL/du[i] = w[i]: w^2 * 1 / 2 and 1 * w^2 / 2; the fourth never fires.
    assert score(Hessian(samples=2), model, graph, workload) == pytest.approx([0.5, 2.0, 4.5, 0.0])
    assert score(Taylor(batches=1), model, graph, workload) == pytest.approx([1.0, 2.0, 3.0, 0.0])


def test_the_curvature_tells_what_the_slope_does_not() -> None:
    """At a minimum, where the mean gradient is zero, Taylor sees nothing and Hessian sees the unit that is used."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[1].weight.copy_(torch.tensor([[1.0, 0.0]]))
    inputs = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    # The target is missed by +1 and -1.
    workload = workload_of(model, inputs, torch.tensor([[0.0], [2.0]]), loss=F.mse_loss)
    graph = one_group(2, part("0", ("weight", 0), count=2, makes=True), part("1", ("weight", 1), count=2))
    assert score(Taylor(batches=1), model, graph, workload) == [0, 0]
    # Each sample's gradient for the one weight of 1 in either layer is 2 (1 - t) = +-2: 1^2 * 4 / 2.
    assert score(Hessian(samples=2), model, graph, workload) == [2, 0]


def test_activation_is_seen_behind_the_nonlinearity() -> None:
    """Each unit fires for one of four samples; what ReLU cuts off counts nothing."""
    model = mlp(1, 4, 2, -3)
    workload = workload_of(model, torch.eye(4))
    assert score(Activation(), model, hidden_units(), workload) == [0.25, 1.0, 0.5, 0.0]


def test_activation_of_flattened_maps_and_of_makers() -> None:
    """A channel's value is the mean of its pixels at the linear layer that reads them, and at the output of a last."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -2.0]).reshape(2, 1, 1, 1))
    workload = workload_of(model, torch.full((2, 1, 2, 2), 3.0))
    made = part("0", ("weight", 0), count=2, makes=True)
    assert score(Activation(), model, one_group(2, made, part("2", ("weight", 1), count=2, per=4)), workload) == [3, 6]
    assert score(Activation(), model, one_group(2, made), workload) == [3, 6]


class Used(nn.Module):
    """An LSTM whose last state goes into a linear layer, or whose weights are used without calling that layer."""

    def __init__(self, *, called: bool, directions: int = 1) -> None:
        super().__init__()
        self.memory = nn.LSTM(3, 2, batch_first=True, bidirectional=directions == 2)
        self.head = nn.Linear(2 * directions, 2)
        self.called = called

    def forward(self, x: Tensor) -> Tensor:
        states = self.memory(x)[0]
        return (self.head(states) if self.called else F.linear(states, self.head.weight)).mean(dim=1)


@pytest.mark.parametrize("called", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
def test_activation_of_recurrent_units(called: bool, directions: int) -> None:  # noqa: FBT001 - a test's parameter
    """The states of a unit count over time and directions, at the layer that reads them or at the LSTM itself."""
    model = Used(called=called, directions=directions).eval()
    inputs = torch.randn(4, 5, 3)
    rows = gated("memory", 4, 2)
    states = part("memory", ("weight_hh_l0", 1), count=2)
    reader = replace(part("head", ("weight", 1), count=2 * directions), channels=(0, 1) * directions)
    expected = model.memory(inputs)[0].abs().reshape(-1, 2).mean(dim=0).tolist()
    scores = score(Activation(), model, one_group(2, rows, states, reader), workload_of(model, inputs))
    assert scores == pytest.approx(expected, rel=1e-5)


def test_groups_that_cannot_be_judged_say_so() -> None:
    """Scores that are not numbers, and a reason: no norm, no weights, nothing to watch, no gradient."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model.register_parameter("unused", nn.Parameter(torch.ones(4)))
    graph = one_group(4, part("", ("unused", 0), count=4))
    for criterion in (L1(), FPGM(), LAMP(), BatchNormScale(), Activation(), Taylor(), Hessian(samples=2)):
        assert torch.tensor(score(criterion, model, graph, workload_of(model, torch.eye(4)))).isnan().all()
    assert "batch normalization" in unranked(BatchNormScale())
    assert "weights" in unranked(L1())
    assert "watched" in unranked(Activation())
    assert "gradient" in unranked(Taylor())


def test_batch_norm_scale_skips_everything_else() -> None:
    """|gamma| of (1, -0.5) counts; filters do not."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -0.5]))
    norm = part("1", ("running_mean", 0), ("weight", 0), ("bias", 0), count=2, norm=True)
    graph = one_group(2, part("0", ("weight", 0), count=2, makes=True), norm)
    assert score(BatchNormScale(), model, graph) == [1.0, 0.5]


def test_chance_follows_the_seed_and_the_name() -> None:
    """The same seed gives the same scores, whichever other groups there are; another seed or group gives others."""
    model = mlp(1, 2, 3, 4)
    workload = workload_of(model, torch.eye(4))
    group = hidden_units().groups[0]
    other = replace(group, name="other")
    both = channel_scores(Random(), model, Graph((other, group)), workload, 0)
    alone = channel_scores(Random(), model, Graph((group,)), workload, 0)["group"]
    assert torch.equal(both["group"], alone)
    assert not torch.equal(both["other"], alone)
    assert not torch.equal(channel_scores(Random(), model, Graph((group,)), workload, 1)["group"], alone)
    assert bool(((alone >= 0) & (alone < 1)).all())


@pytest.mark.parametrize("criterion", EVERY, ids=lambda criterion: type(criterion).__name__)
def test_every_criterion_scores_a_real_network_twice_alike(criterion: Criterion) -> None:
    """Finite scores >= 0 of the right widths for all groups of a residual CNN; the model is left as it was."""
    workload = make_workload(TinyResNet(8).eval(), train=64, test=16)
    model = workload.model
    before = copy.deepcopy(model.state_dict())
    graph = trace_structure(model, workload.example_inputs)
    first = channel_scores(criterion, model, graph, workload, 3)
    torch.randn(5)
    again = channel_scores(criterion, model, graph, workload, 3)
    assert list(first) == [group.name for group in graph.groups]
    for group in graph.groups:
        if isinstance(criterion, BatchNormScale) and group.makes_output:
            continue  # the classifier has no norm behind it
        assert first[group.name].shape == (group.width,)
        assert bool((first[group.name] >= 0).all())
        assert torch.equal(first[group.name], again[group.name])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    "criterion", [item for item in EVERY if item != Random()], ids=lambda item: type(item).__name__
)
@pytest.mark.parametrize("seed", [0, 1])
def test_what_scores_least_is_missed_least(trained_workload: Workload, criterion: Criterion, seed: int) -> None:
    """In every layer of a trained network, the worst quarter of the channels costs less loss than the best quarter."""
    model = trained_workload.model
    graph = trace_structure(model, trained_workload.example_inputs)
    scores = channel_scores(criterion, model, graph, trained_workload, seed)

    def loss_without(*, largest: bool) -> float:
        gone = {
            group: sorted(scores[group.name].topk(group.width // 4, largest=largest).indices.tolist())
            for group in graph.groups
            if not group.makes_output
        }
        masked = mask_(copy.deepcopy(model), graph.sizes_without(gone))
        inputs, targets = synthetic_images(256, seed=9)
        with torch.no_grad():
            return F.cross_entropy(masked(inputs), targets).item()

    assert loss_without(largest=False) < loss_without(largest=True)


def test_only_lamp_compares_as_it_is() -> None:
    """LAMP's scores go over layers unchanged; the others are taken over their layer's mean."""
    assert across_groups(LAMP())(torch.tensor([1.0, 3.0])).tolist() == [1.0, 3.0]
    assert across_groups(L1())(torch.tensor([1.0, 3.0])).tolist() == [0.5, 1.5]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Taylor, {"batches": 0}, "batches counts the training batches .* got 0"),
        (Activation, {"batches": 0}, "batches counts the calibration batches .* got 0"),
        (Hessian, {"samples": 0}, "got samples=0, micro_batch=1"),
        (Hessian, {"samples": 4, "micro_batch": 8}, "1 <= micro_batch <= samples; got samples=4, micro_batch=8"),
    ],
)
def test_wrong_settings_are_refused(kind: type, settings: dict, message: str) -> None:
    """Each wrong value is refused with what was wanted and got."""
    with pytest.raises(ValueError, match=message):
        kind(**settings)
