"""Recurrent layers as blocks: a stack without a layer is the stack of the others, and what cannot go says why."""

import copy
import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compressor.batches import Batches
from compressor.errors import StageError
from compressor.files.graphs import parse
from compressor.inspection.shares import Shares
from compressor.measuring.node_times import NodeTime
from compressor.pruning.choice.costs import StructureCosts, block_key
from compressor.stage import Context
from compressor.stages.fine_tuning import FineTune
from compressor.stages.layer_dropping import DropBlocks, Influence, LossIncrease, block_influence
from compressor.stages.quantization import Quantize
from compressor.structure.blocks import entries_without, find_blocks, skipped
from compressor.structure.checkpoint import load_checkpoint, save_checkpoint
from compressor.structure.pass_through import PassThrough
from compressor.structure.plan import apply_plan_
from compressor.structure.recurrent_layers import is_layer, layer_activations, layer_name, layers_of, stack_and_layer
from compressor.workload import Workload, predict
from workbench.same_data import same_data

STACKS = {
    "LSTM": lambda layers: nn.LSTM(4, 6, layers, batch_first=True),
    "bidirectional LSTM": lambda layers: nn.LSTM(4, 6, layers, batch_first=True, bidirectional=True),
    "projected LSTM": lambda layers: nn.LSTM(4, 6, layers, batch_first=True, bidirectional=True, proj_size=5),
    "GRU": lambda layers: nn.GRU(4, 6, layers, batch_first=True, bidirectional=True),
    "RNN without bias": lambda layers: nn.RNN(4, 6, layers, batch_first=True, bias=False),
    "RNN, time first": lambda layers: nn.RNN(4, 6, layers),
}


class Classifier(nn.Module):
    """The mean over the outputs of a stack, then a head; `read` takes something else of what the stack returns."""

    def __init__(self, stack: nn.RNNBase, read: Callable | None = None, width: int | None = None) -> None:
        super().__init__()
        self.recurrent = stack
        made = (stack.proj_size or stack.hidden_size) * (2 if stack.bidirectional else 1)
        self.head = nn.Linear(width or made, 3)
        self.read = read or (lambda output, _state: output.mean(dim=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.read(*self.recurrent(x)))


def workload_of(model: nn.Module, features: int = 4, count: int = 48) -> Workload:
    """Sequences of 5 steps; the class is told by the first feature of the last step."""
    x = torch.randn(count, 5, features)
    y = (x[:, -1, 0] > 0.4).long() + (x[:, -1, 0] > -0.4).long()
    data = Batches((x, y), batch_size=16)
    return same_data(model.eval(), data, x[:2])


def drop(stage: DropBlocks, workload: Workload) -> tuple[nn.Module, Context]:
    context = Context(progress=False)
    return stage.apply(copy.deepcopy(workload.model), workload, context), context


def without(model: nn.Module, *names: str) -> nn.Module:
    """A copy of `model` that lost these blocks for good."""
    found = find_blocks(model, torch.randn(3, 5, 4))
    changed = copy.deepcopy(model)
    entries = [entry for entry, _ in entries_without(changed, {name: found[name] for name in names})]
    return apply_plan_(changed, json.loads(json.dumps(entries)))


@pytest.mark.parametrize("kind", STACKS)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_two_layers_without_the_second_are_one_layer(kind: str) -> None:
    """The first layer's weights in a stack of one layer give the same bits, sequence and states, by the same names."""
    model = nn.Sequential(STACKS[kind](2)).eval()
    alone = STACKS[kind](1).eval()
    alone.load_state_dict({name: model[0].state_dict()[name] for name in alone.state_dict()})
    apply_plan_(model, [{"kind": "layers", "dropped": {"0": [1]}, "counts": {"0": 2}}])
    left, x = model[0], torch.randn(3, 5, 4)
    assert list(left.state_dict()) == list(alone.state_dict())
    assert (left.num_layers, left.input_size, repr(left)) == (1, 4, repr(alone))
    assert left.all_weights is not None
    assert [len(weights) for weights in left.all_weights] == [len(weights) for weights in alone.all_weights]
    for one, other in zip(_flat(left(x)), _flat(alone(x)), strict=True):
        assert torch.equal(one, other)


def _flat(value: Tensor | tuple) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [leaf for item in value for leaf in _flat(item)]


@pytest.mark.parametrize("kind", STACKS)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_later_layers_move_down(kind: str) -> None:
    """Of three layers the second goes: the third's weights, the same objects, are the second's now."""
    model = nn.Sequential(STACKS[kind](3)).eval()
    third = {name: weight for name, weight in model[0].named_parameters() if "_l2" in name}
    first = {name: weight for name, weight in model[0].named_parameters() if "_l0" in name}
    apply_plan_(model, [{"kind": "layers", "dropped": {"0": [1]}}])
    weights = dict(model[0].named_parameters())
    assert {id(weights[name.replace("_l2", "_l1")]) for name in third} == {id(weight) for weight in third.values()}
    assert all(weights[name] is weight for name, weight in first.items())
    assert len(weights) == len(first) + len(third)
    wanted = STACKS[kind](2).eval()
    wanted.load_state_dict(model[0].state_dict())
    x = torch.randn(3, 5, 4)
    assert torch.equal(model[0](x)[0], wanted(x)[0])
    copied = copy.deepcopy(model[0]).double()
    assert copied(x.double())[0].dtype == torch.float64


@pytest.mark.parametrize("kind", STACKS)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_skipping_for_a_moment_is_dropping_and_leaves_no_trace(kind: str) -> None:
    """Skipped, also one inside another, layers do not run, as when dropped; afterwards every bit is as before."""
    model = Classifier(STACKS[kind](4), read=lambda output, _state: output[:, -1]).eval()
    x = torch.randn(3, 5, 4)
    found = find_blocks(model, x)
    assert list(found) == ["recurrent.layers.1", "recurrent.layers.2", "recurrent.layers.3"]
    names, bits, before = list(model.state_dict()), copy.deepcopy(model.state_dict()), model(x)
    books = copy.copy(vars(model.recurrent))
    with skipped(model, {"recurrent.layers.1": found["recurrent.layers.1"]}):
        assert layers_of(model.recurrent) == [0, 2, 3]
        once = model(x)
        with skipped(model, {"recurrent.layers.2": found["recurrent.layers.2"]}):
            assert layers_of(model.recurrent) == [0, 3]
            twice = model(x)
        assert torch.equal(model(x), once)
    assert torch.equal(once, without(model, "recurrent.layers.1")(x))
    assert torch.equal(twice, without(model, "recurrent.layers.1", "recurrent.layers.2")(x))
    assert torch.equal(model(x), before)
    assert list(model.state_dict()) == names
    assert all(torch.equal(value, bits[name]) for name, value in model.state_dict().items())
    assert all(vars(model.recurrent)[key] is value for key, value in books.items() if key.startswith("_"))


def test_names_of_layers() -> None:
    """The second layer of `a.b` is `a.b.layers.1`, of the model itself `layers.1`; modules of that name are none."""
    assert layer_name("a.b", 1) == "a.b.layers.1"
    assert stack_and_layer("a.b.layers.1") == ("a.b", 1)
    assert stack_and_layer(layer_name("", 10)) == ("", 10)
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(4, 1, 4, batch_first=True), 2, enable_nested_tensor=False
    )
    assert not is_layer(nn.Sequential(encoder), "0.layers.1")
    assert is_layer(nn.Sequential(nn.GRU(4, 4, 2)), "0.layers.1")
    assert not is_layer(nn.Sequential(nn.GRU(4, 4, 2)), "0")


def test_which_layers_are_blocks() -> None:
    """Those whose input is as wide as their output: all of 4 to 4, none but the second of 3 to 4; never the last one
    of a model that is a stack itself, nor layers whose weights are computed.
    """

    def found(model: nn.Module, features: int) -> list[str]:
        return list(find_blocks(model.eval(), torch.randn(2, 5, features)))

    same, wider = nn.LSTM(4, 4, 2, batch_first=True), nn.LSTM(3, 4, 2, batch_first=True)
    assert found(Classifier(same), 4) == ["recurrent.layers.0", "recurrent.layers.1"]
    assert found(Classifier(wider), 3) == ["recurrent.layers.1"]
    assert found(same, 4) == ["layers.1"]
    # Twice 4 units come out of 8 features.
    assert len(found(Classifier(nn.GRU(8, 4, 2, bidirectional=True)), 8)) == 2
    normed = nn.utils.parametrizations.weight_norm(nn.GRU(4, 4, 2, batch_first=True), "weight_hh_l0")
    with pytest.raises(StageError, match=r"recurrent has no layer with plain weights whose input is of the size"):
        find_blocks(Classifier(normed).eval(), torch.randn(2, 5, 4))


class Ladder(nn.Module):
    """Single recurrent modules one after another; the second's state is looked at where `looks` is set."""

    def __init__(self, *, looks: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.LSTM(4, 6, batch_first=True), nn.LSTM(6, 6, batch_first=True)
        self.head, self.looks = nn.Linear(6, 3), looks

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.first(x)
        x, state = self.second(x)
        return self.head(state[0][-1] if self.looks else x[:, -1])


def test_a_recurrent_module_of_its_own_is_a_block() -> None:
    """It passes the sequence through, with None for its state; whoever looks at the state keeps it."""
    workload = workload_of(Ladder())
    model, context = drop(DropBlocks(remove=0.5), workload)
    assert isinstance(model.second, PassThrough)
    assert context.plan[0]["with_state"] is True
    x = workload.example_inputs
    assert torch.equal(model(x), model.head(model.first(x)[0][:, -1]))
    with pytest.raises(StageError, match=r"second is locked: TypeError: 'NoneType' object is not subscriptable"):
        drop(DropBlocks(remove=0.5), workload_of(Ladder(looks=True)))


def test_a_stack_may_lose_all_its_layers() -> None:
    """Both of two layers of 4 to 4 gone, the head reads the features, and what is left is no stack any more."""
    model = Classifier(nn.GRU(4, 4, 2, batch_first=True)).eval()
    x = torch.randn(3, 5, 4)
    left = without(model, "recurrent.layers.0", "recurrent.layers.1")
    assert isinstance(left.recurrent, PassThrough)
    assert torch.equal(left(x), model.head(x.mean(dim=1)))
    with skipped(model, find_blocks(model, x)):
        assert torch.equal(model(x), left(x))
    assert isinstance(model.recurrent, nn.GRU)


@pytest.mark.parametrize(
    ("read", "width", "reason"),
    [
        (lambda _output, state: state.transpose(0, 1).flatten(1), 12, "mat1 and mat2 shapes cannot be multiplied"),
        (lambda _output, state: state[1], 6, "index 1 is out of bounds"),
        (lambda _output, state: state[1:].mean(dim=0), 6, "the output becomes infinite or NaN"),
    ],
)
def test_layers_whose_state_is_read_are_locked_with_the_reason(read: Callable, width: int, reason: str) -> None:
    """The states of both layers in a row, the second's by its number, or the mean from the second on: it stays."""
    model = Classifier(nn.GRU(4, 6, 2, batch_first=True), read=read, width=width)
    with pytest.raises(StageError, match=f"recurrent.layers.1 is locked: .*{reason}"):
        drop(DropBlocks(remove=0.5), workload_of(model))


def test_the_last_state_is_that_of_the_last_layer_left() -> None:
    """state[-1] stays right: after the second layer is gone, it is the first one's."""
    model = Classifier(nn.GRU(4, 6, 2, batch_first=True), read=lambda _output, state: state[-1])
    left, _ = drop(DropBlocks(remove=0.5), workload_of(model))
    x = torch.randn(3, 5, 4)
    assert torch.equal(left(x), left.head(model.recurrent(x)[1][0]))


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory, self.head = nn.LSTM(4, 4, 3, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.tensor([5, 3, 2])[: len(x)]
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        start = (x.new_ones(self.memory.num_layers, len(x), 4), x.new_zeros(self.memory.num_layers, len(x), 4))
        output, _ = self.memory(packed, start)
        return self.head(nn.utils.rnn.pad_packed_sequence(output, batch_first=True)[0].sum(dim=1))


def test_packed_sequences_and_given_states() -> None:
    """Layers are found and influence is measured on packed sequences with a first state; they may be dropped."""
    model = Packed().eval()
    x = torch.randn(3, 5, 4)
    assert list(find_blocks(model, x)) == [f"memory.layers.{layer}" for layer in range(3)]
    data = Batches((x, torch.tensor([0, 1, 2])), batch_size=3)
    workload = same_data(model, data, x)
    left, context = drop(DropBlocks(remove=0.34, rank_by=Influence()), workload)
    assert left.memory.num_layers == 2
    assert all(0 < entry["score"] < 2 for entry in context.details["blocks"])


@pytest.mark.parametrize("kind", STACKS)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_what_goes_into_each_layer_and_comes_out(kind: str) -> None:
    """The first layer takes what the stack takes, each other what the one before made, the last makes what it makes."""
    stack = STACKS[kind](3).eval()
    x = torch.randn(3, 5, 4)
    size = stack.proj_size or 6
    directions = 2 if stack.bidirectional else 1
    batch = 3 if stack.batch_first else 5
    hidden = torch.randn(3 * directions, batch, size)
    state = (hidden, torch.randn(3 * directions, batch, 6)) if isinstance(stack, nn.LSTM) else hidden
    found = layer_activations(stack, (x, state))
    assert list(found) == [0, 1, 2]
    assert torch.equal(found[0][0], x)
    assert found[1][0] is found[0][1]
    assert found[2][0] is found[1][1]
    torch.testing.assert_close(found[2][1], stack(x, state)[0])
    assert layers_of(stack) == [0, 1, 2]


def test_the_layer_that_does_least_goes_first() -> None:
    """A second layer whose input equals its output but for a scale has no influence, a third of another direction."""
    stack = nn.RNN(4, 4, 3, batch_first=True, nonlinearity="relu", bias=False)
    with torch.no_grad():
        for weight in stack.parameters():
            weight.zero_()
        for layer, scale in enumerate((1.0, 0.5, 1.0)):
            getattr(stack, f"weight_ih_l{layer}").copy_(scale * torch.eye(4))
        stack.weight_ih_l2.copy_(torch.eye(4).flip(0))
    workload = workload_of(Classifier(stack))
    left, context = drop(DropBlocks(remove=0.3, rank_by=Influence(), blocks=("*.1", "*.2")), workload)
    assert context.details["dropped_in_order"] == ["recurrent.layers.1"]
    scores = {entry["block"]: entry["score"] for entry in context.details["blocks"]}
    assert scores["recurrent.layers.1"] == pytest.approx(0, abs=1e-6)
    x = torch.cat([inputs for inputs, _ in workload.calibration]).relu()
    wanted = block_influence(x, x.flip(-1)).mean()
    assert scores["recurrent.layers.2"] == pytest.approx(float(wanted), rel=1e-3)
    assert torch.equal(left.recurrent.weight_ih_l1, torch.eye(4).flip(0))


@pytest.mark.parametrize("rank_by", [Influence(), LossIncrease()])
def test_plan_rebuilds_and_loads_in_several_steps(tmp_path, rank_by: Influence | LossIncrease) -> None:
    """A layer of four, then one of the three left: the plan and the weights give the same bits on a fresh model."""
    workload = workload_of(Classifier(nn.LSTM(4, 6, 4, batch_first=True, bidirectional=True)))
    stage, context = DropBlocks(remove=0.34, rank_by=rank_by), Context(progress=False)
    model = stage.apply(copy.deepcopy(workload.model), workload, context)
    model = stage.apply(model, workload, context)
    assert [entry["counts"] for entry in context.plan] == [{"recurrent": 4}, {"recurrent": 3}]
    assert model.recurrent.num_layers == 2
    assert set(context.plan[1]["why"]["scores"]) == {
        layer_name("recurrent", context.plan[1]["dropped"]["recurrent"][0])
    }
    save_checkpoint(tmp_path, model, context.plan)
    loaded = load_checkpoint(tmp_path, lambda: Classifier(nn.LSTM(4, 6, 4, batch_first=True, bidirectional=True)))
    x = workload.example_inputs
    assert torch.equal(predict(loaded, x), predict(model.eval(), x))
    assert workload.model.recurrent.num_layers == 4


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dropped": {"head": [0]}}, "drops layers of 'head', which is no recurrent module of Classifier"),
        ({"dropped": {"recurrent": [1]}, "counts": {"recurrent": 3}}, "with 3 layers, but that of Classifier has 2"),
        ({"dropped": {"recurrent": [0]}}, r"drops the layers \[0\] of 'recurrent'; droppable there are \[1\]"),
        ({"dropped": {"recurrent": [2]}}, r"drops the layers \[2\]"),
        ({"dropped": {"recurrent": [1, 1]}}, r"drops the layers \[1, 1\]"),
        ({"dropped": {"recurrent": [True]}}, r"drops the layers \[True\]"),
        ({"dropped": {"recurrent": []}}, r"drops the layers \[\]"),
        ({"dropped": {"recurrent": [1], "head": [0]}}, "which is no recurrent module"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_and_changes_nothing(entry: dict, message: str) -> None:
    """Every stack of an entry is checked before the first one loses a layer."""
    model = Classifier(nn.GRU(4, 6, 2))
    names = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        apply_plan_(model, [{"kind": "layers", **entry}])
    assert list(model.state_dict()) == names
    assert model.recurrent.num_layers == 2


def test_a_model_that_is_a_stack_keeps_a_layer() -> None:
    """Nothing could stand where the model itself was."""
    stack = nn.GRU(4, 4, 2)
    with pytest.raises(ValueError, match="drops every layer of GRU, and nothing would be left"):
        apply_plan_(stack, [{"kind": "layers", "dropped": {"": [0, 1]}}])
    assert apply_plan_(stack, [{"kind": "layers", "dropped": {"": [0]}}]).num_layers == 1


def test_the_layer_left_trains_exports_and_quantizes() -> None:
    """One LSTM node is in the file, in 8 bits too, the weights learn, and 8 bits compute nearly the same."""
    workload = workload_of(Classifier(nn.LSTM(4, 8, 2, batch_first=True)))
    left, context = drop(DropBlocks(remove=0.5), workload)
    before = copy.deepcopy(left.state_dict())
    tuned = FineTune(epochs=1).apply(left, workload, context).eval()
    assert all(not torch.equal(value, before[name]) for name, value in tuned.state_dict().items())
    integer = Quantize(portable=None).apply(tuned, workload, context)
    nodes = [node.op_type for node in parse(integer.onnx_bytes).graph.node]
    assert [name for name in nodes if "LSTM" in name] == ["DynamicQuantizeLSTM"]
    x = workload.example_inputs
    torch.testing.assert_close(predict(integer, x), predict(tuned, x).detach(), atol=0.1, rtol=0.1)


def test_costs_of_a_stack_without_a_layer_by_hand() -> None:
    """Two layers of 6 units on 4 features over 5 steps, 4 gates each: the second has 12 of 22 columns of products."""
    model = Classifier(nn.LSTM(4, 6, 2, batch_first=True)).eval()
    costs = StructureCosts(model, torch.randn(2, 5, 4), None, ("recurrent.layers.1",))
    gone = {block_key("recurrent.layers.1"): 0}
    assert costs.macs([{}, gone]) == [5 * 24 * (4 + 6 + 6 + 6) + 18, 5 * 24 * (4 + 6) + 18]
    assert costs.parameters([{}, gone]) == [24 * 22 + 96 + 21, 24 * 10 + 48 + 21]
    assert len(costs.operators(gone)) == len(costs.operators({})) - 1


def test_shares_of_a_layer_of_a_stack_by_hand() -> None:
    """The second layer has 336 of the stack's 624 weights, and so much of its 3 of 4 milliseconds; both have it all."""
    model = Classifier(nn.LSTM(4, 6, 2, batch_first=True))
    times = [
        NodeTime(operator=operator, layer=layer, module=layer, weighted=True, ms=ms)
        for operator, layer, ms in (("LSTM", "recurrent", 1.0), ("LSTM", "recurrent", 2.0), ("Gemm", "head", 1.0))
    ]
    shares = Shares.of(model, times)
    assert shares.held_by_blocks(["recurrent.layers.1"]) == 336 / (624 + 21)
    assert shares.time(blocks=["recurrent.layers.1"]) == pytest.approx(336 / 624 * 3 / 4)
    assert shares.time(blocks=["recurrent.layers.0", "recurrent.layers.1"]) == pytest.approx(3 / 4)
