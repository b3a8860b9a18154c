"""What a structure costs before it is built, against hand-computed sizes and against what is built."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.pruning.choice.costs import FileTime, LatencyCosts, StructureCosts, block_key
from compressor.pruning.narrowing import gone_channels
from compressor.structure.graph import trace_structure
from compressor.structure.plan import apply_plan_
from compressor.structure.preparing.preparation import prepare_
from compressor.structure.trials import evaluating
from workbench.tiny import Attention, TinyResNet


def costs_of(model: nn.Module, inputs: Tensor, blocks: tuple[str, ...] = ()) -> StructureCosts:
    with evaluating(model):
        return StructureCosts(model, inputs, trace_structure(model, inputs), blocks)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def test_linear_layers_by_hand() -> None:
    """4 -> 8 -> 2 costs 48 products and 58 parameters; with 3 hidden units 18 products and 23 parameters."""
    costs = costs_of(mlp(), torch.randn(2, 4))
    assert costs.macs([{}, {"0": 3}]) == [48, 18]
    assert costs.parameters([{}, {"0": 3}]) == [58, 23]


def test_convolutions_by_hand() -> None:
    """A 3x3 convolution, a depthwise one and a 1x1 one on 4 x 4 maps, whole and with half of the channels."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 2, 1),
        nn.Flatten(),
        nn.Linear(32, 2),
    ).eval()
    costs = costs_of(model, torch.randn(2, 3, 4, 4))
    whole = 16 * (27 * 8 + 9 * 8 + 8 * 2) + 64
    half = 16 * (27 * 4 + 9 * 4 + 4 * 2) + 64
    assert costs.macs([{}, {"0": 4}]) == [whole, half]
    assert costs.macs([{"2": 1}]) == [16 * (27 * 8 + 9 * 8 + 8) + 32]
    assert costs.parameters([{"0": 4}]) == [27 * 4 + 4 + 9 * 4 + 4 + 4 * 2 + 2 + 66]


def test_a_dropped_block_costs_nothing() -> None:
    """Without a block its 2 x 9 x 16 x 16 weights and their products are gone, and its groups no longer matter."""
    costs = costs_of(TinyResNet().eval(), torch.randn(2, 3, 8, 8), ("layer1.1",))
    gone = {block_key("layer1.1"): 0}
    whole, without, still = costs.macs([{}, gone, {**gone, "layer1.1.conv1": 8}])
    assert whole - without == 64 * 2 * 9 * 16 * 16
    assert without == still
    parameters, left = costs.parameters([{}, gone])
    assert parameters - left == 2 * 9 * 16 * 16 + 2 * 2 * 16


def test_costs_before_building_are_those_after() -> None:
    """Products and parameters foretold of a narrower network are those of the network built so."""
    model = TinyResNet().eval()
    inputs = torch.randn(2, 3, 8, 8)
    graph = trace_structure(model, inputs)
    state = {group.name: group.width // 2 for group in graph.groups if not group.makes_output}
    gone = gone_channels(graph.groups, {group.name: torch.arange(group.width) for group in graph.groups}, state)
    built = apply_plan_(copy.deepcopy(model), graph.entries(gone))
    before, after = StructureCosts(model, inputs, graph), costs_of(built, inputs)
    assert before.macs([state]) == after.macs([{}])
    assert before.parameters([state]) == after.parameters([{}])
    assert before.parameters([state]) == [sum(parameter.numel() for parameter in built.parameters())]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.memory = kind(6, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.memory(x)[0].mean(dim=1))


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)])
def test_recurrent_layers_by_hand(kind: type[nn.RNNBase], gates: int) -> None:
    """Two bidirectional layers of 8 units over 5 steps of 6 features."""
    costs = costs_of(Recurrent(kind).eval(), torch.randn(3, 5, 6))
    assert costs.macs([{}]) == [5 * 2 * gates * 8 * (6 + 8 + 16 + 8) + 32]


class PackedRecurrent(Recurrent):
    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 4, 2])[: len(x)], batch_first=True)
        return self.head(nn.utils.rnn.pad_packed_sequence(self.memory(packed)[0], batch_first=True)[0].mean(dim=1))


def test_packed_sequences_count_as_the_longest() -> None:
    """Packed sequences of 5, 4 and 2 steps cost what a batch of three of 5 steps costs."""
    costs = costs_of(PackedRecurrent(nn.GRU).eval(), torch.randn(3, 5, 6))
    assert costs.macs([{}])[0] == pytest.approx(5 * 2 * 3 * 8 * (6 + 8 + 16 + 8) + 5 / 3 * 32, rel=0.02)


def test_products_outside_of_layers_are_counted() -> None:
    """Two heads of 4 over 5 positions: 3 projections, 2 x 2 products of 5 x 4 x 5, and the output layer."""
    costs = costs_of(Attention().eval(), torch.randn(3, 5, 6))
    assert costs.macs([{}]) == [5 * 3 * 48 + 2 * 2 * 5 * 4 * 5 + 5 * 16]


def test_attention_of_torch_costs_the_same_whole_and_narrow() -> None:
    """An encoder layer with one of four heads and half of its feed-forward units costs what it does once built."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.Sequential(nn.Linear(6, 16), layer, nn.Flatten(), nn.Linear(80, 2)).eval()
    inputs = torch.randn(2, 5, 6)
    whole = 5 * (6 * 16 + 4 * 16 * 16 + 2 * 16 * 32) + 2 * 4 * 5 * 4 * 5 + 160
    assert costs_of(model, inputs).macs([{}]) == [whole]
    prepare_(model, inputs)
    graph = trace_structure(model, inputs)
    costs = costs_of(model, inputs)
    assert costs.macs([{}]) == [whole]
    state = {"1.self_attn": 1, "1.linear1": 16}
    gone = gone_channels(graph.groups, {group.name: torch.arange(group.width) for group in graph.groups}, state)
    built = apply_plan_(copy.deepcopy(model), graph.entries(gone))
    assert costs.macs([state]) == costs_of(built, inputs).macs([{}])
    assert costs.macs([state]) == [5 * (6 * 16 + 16 * 16 + 16 * 32) + 2 * 5 * 4 * 5 + 160]
    assert [operator.outputs for operator in costs.operators(state)] == [16, 12, 5, 4, 16, 16, 16, 2]


class Mixed(nn.Module):
    """CondConv (Yang et al. 2019, arXiv:1904.04971): every sample's kernel is a mixture of those of experts."""

    def __init__(self, inputs: int, outputs: int, experts: int = 4) -> None:
        super().__init__()
        self.route = nn.Linear(inputs, experts)
        self.kernels = nn.Parameter(torch.randn(experts, outputs, inputs, 3, 3) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        samples, channels, height, width = x.shape
        outputs = self.kernels.shape[1]
        mixed = torch.sigmoid(self.route(x.mean((2, 3)))) @ self.kernels.flatten(1)
        kernels = mixed.view(samples * outputs, channels, 3, 3)
        x = F.conv2d(x.reshape(1, -1, height, width), kernels, padding=1, groups=samples)
        return x.view(samples, outputs, height, width)


class Modulated(nn.Module):
    """StyleGAN2's convolution (Karras et al. 2020, arXiv:1912.04958), twice as large: a style scales its kernel."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.style, self.kernel = nn.Linear(inputs, inputs), nn.Parameter(torch.randn(inputs, outputs, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        samples, _, height, width = x.shape
        kernel = self.kernel[None] * self.style(x.mean((2, 3)))[:, :, None, None, None]
        kernel = kernel * torch.rsqrt(kernel.square().sum((1, 3, 4), keepdim=True) + 1e-8)
        x = x.reshape(1, -1, height, width)
        x = F.conv_transpose2d(x, kernel.flatten(0, 1), stride=2, groups=samples)
        return x.view(samples, -1, *x.shape[-2:])


class Filtered(nn.Module):
    """A depthwise filter that a layer makes of the whole map, one for each sample and channel."""

    def __init__(self, inputs: int, _outputs: int) -> None:
        super().__init__()
        self.makes = nn.Conv2d(inputs, inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        samples, _, height, width = x.shape
        kernels = self.makes(F.adaptive_avg_pool2d(x, 3)).flatten(0, 1).unsqueeze(1)
        x = F.conv2d(x.reshape(1, -1, height, width), kernels, padding=1, groups=kernels.shape[0])
        return x.view(samples, -1, height, width)


class Shared(nn.Module):
    """A kernel that another layer owns, used a second time by hand."""

    def __init__(self, inputs: int, _outputs: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(inputs, inputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.relu(self.layer(x)), self.layer.weight, padding=1)


@pytest.mark.parametrize("kind", [Mixed, Modulated, Filtered, Shared])
def test_products_with_computed_kernels_shrink_with_what_makes_them(kind: type[nn.Module]) -> None:
    """Before it is built, a narrower network has the products that it has once it is built."""
    layers = (nn.Conv2d(3, 8, 1), nn.ReLU(), kind(8, 8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1))
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 5)).eval()
    inputs = torch.randn(2, 3, 6, 6)
    graph = trace_structure(model, inputs)
    free = [group for group in graph.groups if group.locked is None]
    assert free
    state = {group.name: group.width // 2 for group in free}
    gone = gone_channels(graph.groups, {group.name: torch.arange(group.width) for group in graph.groups}, state)
    built = apply_plan_(copy.deepcopy(model), graph.entries(gone))
    whole, narrow = costs_of(model, inputs).macs([{}, state])
    assert whole > 1.5 * narrow
    assert narrow == pytest.approx(costs_of(built, inputs).macs([{}])[0], rel=1e-6)


def times(models) -> list[float]:
    """A table that takes one millisecond for a product."""
    return [float(sum(operator.macs for operator in operators)) for operators in models]


def test_latency_is_the_layers_and_what_runs_between() -> None:
    """Of 126 ms for two rows, 96 are products and 6 the call; 4 go with two layers and 20 with their 20 outputs."""
    costs = costs_of(mlp(), torch.randn(2, 4))
    file = FileTime(whole_ms=126.0, call_ms=6.0, step_ms=4.0)
    # With 3 hidden units there are 2 x 18 products and 2 x (3 + 2) outputs, of the same two layers.
    assert LatencyCosts(costs, times, file=file, measured_ms=126.0)([{}, {"0": 3}]) == [126.0, 36.0 + 6 + 4 + 10]
    assert LatencyCosts(costs, times, file=file, measured_ms=63.0)([{}, {"0": 3}]) == [63.0, 28.0]


def test_a_table_that_knows_less_of_the_file_than_its_layers_is_scaled() -> None:
    """Where the layers alone take longer than the file, there is nothing between, and they are scaled to the clock."""
    costs = costs_of(mlp(), torch.randn(2, 4))
    latency = LatencyCosts(costs, times, file=FileTime(whole_ms=80.0), measured_ms=48.0)
    assert latency([{}, {"0": 3}]) == [48.0, 18.0]


def test_experts_that_no_row_is_sent_to_cost_nothing() -> None:
    """One expert gets both rows, the others none, as a layer and as a product: 6 x 4 + 2 x (4 x 4) products a row."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.layers = nn.Linear(6, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
            self.weights = nn.Parameter(torch.randn(2, 4, 4))

        def forward(self, x: Tensor) -> Tensor:
            x, mixed = self.stem(x), torch.zeros(len(x), 4)
            for number, layer in enumerate(self.layers):
                rows = torch.where(torch.zeros(len(x)) == number)[0]
                mixed = mixed.index_add(0, rows, layer(x[rows]) @ self.weights[number])
            return mixed

    assert costs_of(Experts().eval(), torch.randn(2, 6)).macs([{}]) == [6 * 4 + 2 * 4 * 4]
