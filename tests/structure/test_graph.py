"""The structure of whole models: what hangs together, what it takes with it, and what is left alone and why."""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from compressor.batches import Inputs
from compressor.pruning.narrowing import reason_to_lock
from compressor.structure.attention import NarrowAttention
from compressor.structure.axes import runs
from compressor.structure.checkpoint import load_checkpoint, save_checkpoint
from compressor.structure.couplings import Coupled, Couplings
from compressor.structure.graph import StructureGraph, trace_structure
from compressor.structure.plan import apply_plan_
from compressor.structure.preparing.preparation import prepare_
from compressor.structure.tensor_ids import mask_
from compressor.workload import predict
from workbench.tiny import TinyResNet


def free(graph: StructureGraph) -> dict[str, Coupled]:
    return {group.name: group for group in graph.groups if group.locked is None}


def locks(graph: StructureGraph) -> dict[str, str]:
    return {group.name: group.locked for group in graph.groups if group.locked is not None}


def halved(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, StructureGraph]:
    """`model` with every second unit of every free group gone, checked against the original with those at zero."""
    model = model.eval()
    graph = trace_structure(model, inputs)
    gone = {group: list(range(0, group.width - 1, 2)) for group in free(graph).values()}
    narrow = apply_plan_(copy.deepcopy(model), graph.entries(gone)).eval()
    masked = mask_(copy.deepcopy(model), graph.sizes_without(gone))
    with torch.no_grad():
        torch.testing.assert_close(predict(narrow, inputs), predict(masked, inputs), rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in narrow.parameters()) < sum(p.numel() for p in model.parameters())
    return narrow, graph


class Mixed(nn.Module):
    """Concatenation, depthwise and transposed convolution, squeeze and excitation, flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.up = nn.ConvTranspose2d(12, 6, 2, 2)
        self.squeeze, self.excite = nn.Linear(6, 4), nn.Linear(4, 6)
        self.hidden, self.out = nn.Linear(6 * 64, 10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(torch.cat([self.left(x), self.right(x)], dim=1)))
        x = F.relu(self.up(self.depthwise(x)))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean(dim=(2, 3))))))
        x = F.avg_pool2d(x * gate[:, :, None, None], 2)
        return self.out(F.relu(self.hidden(x.flatten(1))))


def groups_as_sets(graph: StructureGraph | Couplings) -> dict[str, frozenset[str]]:
    """The tensors of every prunable group, by the layer that makes it."""
    found = {}
    for group in graph.groups:
        if not group.makes_output and group.locked is None:
            names = (name for part in group.parts for name, _ in part.tensors)
            found[group.name] = frozenset(name for name in names if "running" not in name)
    return found


@pytest.mark.parametrize("build", [TinyResNet, Mixed])
def test_groups_and_cuts_are_those_of_torch_pruning(build: Callable[[], nn.Module]) -> None:
    """On CNNs the engine finds the groups that torch-pruning finds, and leaves the same indices of every tensor."""
    model, inputs = build().eval(), torch.randn(2, 3, 8, 8)
    ours, theirs = trace_structure(model, inputs), Couplings(model, inputs)
    assert groups_as_sets(ours) == groups_as_sets(theirs)
    by_name = {group.name: group for group in theirs.groups}
    for group in free(ours).values():
        other = by_name[group.name]
        mine = ours.sizes_without({group: [0, group.width // 2]}).kept
        assert mine == theirs.sizes_without({other: [0, group.width // 2]}).kept


def test_a_mixed_network_computes_what_the_masked_one_does() -> None:
    """Concatenation, depthwise, transposed, gates and flattening: half goes, attributes follow."""
    narrow, _ = halved(Mixed(), torch.randn(2, 3, 8, 8))
    assert (narrow.norm.num_features, narrow.depthwise.groups, narrow.up.in_channels) == (6, 6, 6)
    assert (narrow.hidden.in_features, narrow.hidden.out_features) == (3 * 64, 5)


def test_a_channel_shuffle_keeps_its_halves_in_step() -> None:
    """Chunk, concatenate, shuffle: both halves lose the same channels, as chunk wants equal halves."""

    class Shuffle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.branch, self.out = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            left, right = self.first(x).chunk(2, dim=1)
            x = torch.cat([left, self.branch(right)], dim=1)
            b, c, h, w = x.shape
            return self.out(x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)).mean(dim=(2, 3))

    _, graph = halved(Shuffle(), torch.randn(2, 3, 4, 4))
    assert {name: group.width for name, group in free(graph).items()} == {"first": 8}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("packed", [False, True])
def test_recurrent_units_go_from_all_gates_layers_and_directions(kind: type[nn.RNNBase], packed: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A stacked bidirectional layer has one hidden width; the next layer's columns go with it."""

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory = kind(6, 8, num_layers=2, bidirectional=True, batch_first=True)
            self.out = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            given = pack_padded_sequence(x, torch.full((len(x),), x.shape[1]), batch_first=True) if packed else x
            _, state = self.memory(given)
            hidden = state[0] if isinstance(state, tuple) else state
            return self.out(torch.cat([hidden[-2], hidden[-1]], dim=1))

    narrow, graph = halved(Tagger(), torch.randn(3, 5, 6))
    assert [group.kind for group in free(graph).values()] == ["units"]
    assert narrow.memory.hidden_size == 4
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    assert tuple(narrow.memory.weight_ih_l1_reverse.shape) == (gates * 4, 8)
    assert tuple(narrow.memory.weight_hh_l1.shape) == (gates * 4, 4)
    assert narrow.out.in_features == 8


def test_a_projection_is_a_width_of_its_own() -> None:
    """An LSTM with projections loses hidden units and projected ones independently."""

    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory, self.out = nn.LSTM(6, 8, proj_size=4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.memory(x)[0][:, -1])

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LSTM with projections")
        narrow, _ = halved(Projected(), torch.randn(3, 5, 6))
    assert (narrow.memory.hidden_size, narrow.memory.proj_size, narrow.out.in_features) == (4, 2, 2)


def test_a_cell_with_a_state_of_its_own_size_keeps_the_attribute_in_step() -> None:
    """A loop over LSTMCell makes its first state from an attribute, which follows."""

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.out, self.units = nn.LSTMCell(6, 8), nn.Linear(8, 3), 8

        def forward(self, x: Tensor) -> Tensor:
            state = x.new_zeros(len(x), self.units), x.new_zeros(len(x), self.units)
            for step in range(x.shape[1]):
                state = self.cell(x[:, step], state)
            return self.out(state[0])

    narrow, _ = halved(Loop(), torch.randn(3, 4, 6))
    assert (narrow.units, narrow.cell.hidden_size) == (4, 4)


class Encoder(nn.Module):
    def __init__(self, *, norm_first: bool = False, batch_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 24, norm_first=norm_first, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.enter, self.out = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(self.enter(x)).mean(dim=1))


@pytest.mark.parametrize("settings", [{}, {"norm_first": True}, {"batch_first": False}])
def test_encoder_layers_lose_heads_and_feed_forward_neurons(settings: dict[str, bool]) -> None:
    """After prepare_, whole heads and inner neurons go; the normed trunk stays, and says why."""
    model, inputs = Encoder(**settings).eval(), torch.randn(3, 5, 16)
    with torch.no_grad():
        before = model(inputs)
    assert prepare_(model, inputs) == [
        {"kind": "attention", "modules": ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn"]}
    ]
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), before, rtol=1e-5, atol=1e-5)
    narrow, graph = halved(model, inputs)
    layer = narrow.encoder.layers[0]
    assert (layer.self_attn.num_heads, tuple(layer.self_attn.in_proj_weight.shape)) == (2, (24, 16))
    assert layer.linear1.out_features == 12
    assert any("LayerNorm mixes the channels" in reason for reason in locks(graph).values())


def test_an_attention_layer_that_was_not_prepared_is_locked_with_the_way_out() -> None:
    """Torch's own layer insists on its width: its heads are locked, and the reason names prepare_."""
    reasons = locks(trace_structure(Encoder().eval(), torch.randn(3, 5, 16)))
    assert any("prepare_" in reason for reason in reasons.values())


def test_narrow_attention_computes_what_torch_does() -> None:
    """With other keys, masks of every kind, biases and an extra zero position: the same output and weights."""
    for settings in ({}, {"add_bias_kv": True, "add_zero_attn": True}, {"kdim": 6, "vdim": 10}, {"bias": False}):
        whole = nn.MultiheadAttention(8, 2, batch_first=True, **settings).eval()
        narrow = NarrowAttention(copy.deepcopy(whole))
        query = torch.randn(3, 4, 8)
        key, value = torch.randn(3, 5, settings.get("kdim", 8)), torch.randn(3, 5, settings.get("vdim", 8))
        padding = torch.zeros(3, 5, dtype=torch.bool)
        padding[:, -1] = True
        causal = torch.ones(4, 5, dtype=torch.bool).triu(1)
        for masks in ({}, {"key_padding_mask": padding}, {"attn_mask": causal}, {"attn_mask": torch.randn(6, 4, 5)}):
            for averaged in (True, False):
                wanted = whole(query, key, value, average_attn_weights=averaged, **masks)
                given = narrow(query, key, value, average_attn_weights=averaged, **masks)
                torch.testing.assert_close(given[0], wanted[0], rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(given[1], wanted[1], rtol=1e-5, atol=1e-5)
            alone, _ = narrow(query, key, value, need_weights=False, **masks)
            torch.testing.assert_close(alone, wanted[0], rtol=1e-5, atol=1e-5)
        assert narrow.state_dict().keys() == whole.state_dict().keys()


def test_a_narrowed_encoder_is_rebuilt_from_its_plan(tmp_path) -> None:
    """The plan exchanges attention layers before it cuts: a checkpoint loads into a fresh model of the user's class."""
    model, inputs = Encoder().eval(), torch.randn(3, 5, 16)
    plan = prepare_(model, inputs)
    graph = trace_structure(model, inputs)
    entries = graph.entries({group: [1] for group in free(graph).values()})
    apply_plan_(model, entries)
    save_checkpoint(tmp_path, model, plan + entries)
    again = load_checkpoint(tmp_path, Encoder)
    with torch.no_grad():
        assert torch.equal(again(inputs), model.eval()(inputs))


def test_gpt2_keeps_its_split_size_in_step() -> None:
    """GPT-2 splits queries, keys and values by an attribute: losing 2 of 4 heads of 8 makes it 16."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=32, n_layer=1, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    narrow, graph = halved(transformers.GPT2LMHeadModel(config), torch.randint(0, 40, (3, 7)))
    attention = narrow.transformer.h[0].attn
    assert (attention.split_size, attention.num_heads, attention.c_attn.nf, attention.c_proj.nx) == (16, 2, 48, 16)
    assert attention.embed_dim == 32
    assert narrow.lm_head.weight is narrow.transformer.wte.weight
    assert any(group.makes_output and "transformer.wte" in group.name for group in graph.groups)


def test_bert_loses_heads_and_neurons_and_keeps_count() -> None:
    """Hugging Face attention: the head count follows, the normed width stays."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=16,
    )  # fmt: skip
    narrow, graph = halved(transformers.BertForSequenceClassification(config), torch.randint(0, 40, (3, 7)))
    layer = narrow.bert.encoder.layer[0]
    assert (layer.attention.self.num_attention_heads, layer.attention.self.query.out_features) == (2, 16)
    assert {group.kind for group in free(graph).values()} == {"heads", "neurons"}
    assert layer.intermediate.dense.out_features == 12


class Fixed(nn.Module):
    """What its second layer makes is viewed as 64 features, whatever it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(F.relu(self.first(x))).view(-1, 64))


@pytest.mark.parametrize(
    "graph_of", [partial(trace_structure, settled=False), Couplings], ids=["axes", "torch-pruning"]
)
def test_both_graphs_try_a_cut_and_leave_the_model_as_it_is(
    graph_of: Callable[[nn.Module, Inputs], StructureGraph],
) -> None:
    """The layer before a fixed view is refused with the error, the other one may go; settled, both graphs say so."""
    model, inputs = Fixed().eval(), torch.randn(2, 3, 4, 4)
    before = copy.deepcopy(model.state_dict())
    graph = graph_of(model, inputs)
    groups = {group.name: group for group in graph.groups}
    assert graph.fault_without({}) is None
    assert graph.fault_without({groups["first"]: [0, 5]}) is None
    reason = graph.fault_without({groups["first"]: [0, 5], groups["second"]: [0]})
    assert reason is not None
    assert "shape '[-1, 64]' is invalid" in reason
    graph.settle()
    assert graph.settled
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_slices_of_the_last_trial_save_the_next_cut() -> None:
    """What `slices` know of a parameter is put into the model as it is; torch-pruning's graph knows nothing."""
    model, inputs = Fixed().eval(), torch.randn(2, 3, 4, 4)
    graph = trace_structure(model, inputs)
    gone = {group: [0, 5] for group in graph.groups if group.name == "first"}
    assert graph.fault_without(gone) is None
    known = graph.slices[next(key for key in graph.slices if key[0] == id(model.first.weight))][1]
    assert tuple(known.shape) == (6, 3, 1, 1)
    assert apply_plan_(model, graph.entries(gone), slices=graph.slices).first.weight is known
    assert Couplings(Fixed().eval(), inputs).slices == {}


def test_a_cut_that_computes_something_else_is_refused_by_both_graphs() -> None:
    """Features that a second path reads by position: the shapes fit, the numbers do not, and both graphs say so."""

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.head(x * torch.arange(x.shape[1], device=x.device))

    model, inputs = Weighted().eval(), torch.randn(2, 4)
    for graph in (trace_structure(model, inputs, settled=False), Couplings(model, inputs)):
        group = next(group for group in graph.groups if group.name == "first")
        assert graph.fault_without({group: [0, 1]}) == (
            "without these channels it computes something else than with them at zero"
        )


def test_a_size_written_into_the_code_locks_with_the_error() -> None:
    """A view to a fixed number of features cannot follow: only that layer is locked."""
    graph = trace_structure(Fixed().eval(), torch.randn(2, 3, 4, 4))
    assert set(free(graph)) == {"first"}
    assert "RuntimeError: shape '[-1, 64]' is invalid" in locks(graph)["second"]


def test_an_unknown_operator_locks_what_it_meets_and_names_the_line() -> None:
    """A reduction over segments of channels is not guessed at: the reason gives operator, module and file."""

    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.out = nn.Linear(4, 8), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            pairs = torch.segment_reduce(self.first(x).T.contiguous(), "sum", lengths=torch.tensor([2, 2, 2, 2]))
            return self.out(F.relu(self.second(pairs.T)))

    graph = trace_structure(Mixing().eval(), torch.randn(2, 4))
    assert set(free(graph)) == {"second"}
    assert "operator aten.segment_reduce" in locks(graph)["first"]
    assert "in Mixing" in locks(graph)["first"]
    assert "test_graph.py:" in locks(graph)["first"]
    assert str(Path(__file__).parent) not in locks(graph)["first"]


def test_a_branch_on_values_with_layers_not_run_locks_everything() -> None:
    """Where the example shows one side of an if on computed values, the other side would break."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.left, self.right = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.enter(x)
            return self.left(x) if float(x.sum()) > -1e9 else self.right(x)

    graph = trace_structure(Branching().eval(), torch.randn(2, 4))
    assert not free(graph)
    assert list(graph.unreached) == ["right"]
    assert "branches on a computed value" in locks(graph)["enter"]


def test_a_head_for_training_alone_is_narrowed_with_the_rest() -> None:
    """A branch that only runs in train mode still fits after the cut."""

    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.out, self.side = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            x = F.relu(self.body(x))
            return (self.out(x), self.side(x)) if self.training else self.out(x)

    narrow, _ = halved(Auxiliary(), torch.randn(2, 4))
    assert narrow.side.in_features == 4
    narrow.train()(torch.randn(2, 4))


def test_tracing_leaves_the_model_as_it_was() -> None:
    """Weights, buffers, mode, flags and attributes of the caller's model are untouched, in train mode too."""
    model = TinyResNet().train()
    model.conv1.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    trace_structure(model, torch.randn(2, 3, 8, 8))
    assert model.training
    assert not model.conv1.weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any("_axes_known" in vars(parameter) for parameter in model.parameters())


def test_embeddings_lose_features() -> None:
    """A width that only embeddings make is prunable; the vocabulary stays."""

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(10, 8), nn.Linear(8, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.out(self.words(tokens).sum(dim=1))

    narrow, _ = halved(Bag(), torch.randint(0, 10, (3, 5)))
    assert (narrow.words.num_embeddings, narrow.words.embedding_dim, narrow.out.in_features) == (10, 4, 4)


@pytest.mark.parametrize("affine", [False, True])
def test_a_group_norm_of_one_channel_per_group_is_narrowed(*, affine: bool) -> None:
    """As many groups as channels mix nothing: the channels go, and their groups with them."""
    model = nn.Sequential(nn.Conv1d(2, 8, 3), nn.GroupNorm(8, 8, affine=affine), nn.ReLU(), nn.Conv1d(8, 3, 1))
    narrow, graph = halved(model, torch.randn(2, 2, 9))
    assert list(free(graph)) == ["0"]
    assert (narrow[1].num_groups, narrow[1].num_channels) == (4, 4)


def test_weights_used_without_their_layer_have_the_last_word() -> None:
    """A program that reads a layer's weight without calling the layer is narrowed all the same."""

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.linear(x, self.first.weight, self.first.bias).sigmoid()
            return self.last(F.linear(x, self.second.weight).relu() + self.second.bias)

    narrow, graph = halved(Reads(), torch.randn(2, 4))
    assert list(free(graph)) == ["first", "second"]
    assert narrow.second.weight.shape == (4, 4)


class Table(nn.Module):
    """A table of weights whose rows become neurons through a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.mix, self.out = nn.Parameter(torch.randn(8, 6)), nn.Linear(6, 5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(x.sum(dim=(1, 2))[:, None] * self.mix(self.rows).sum(dim=1)))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    return nn.Sequential(nn.Linear(5, 16), nn.LayerNorm(16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 3))


@pytest.mark.parametrize(("build", "groups"), [(encoder, 4), (Table, 2)])
def test_layers_taken_as_one_operator_hang_together_as_their_parts_do(
    build: Callable[[], nn.Module], groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linear layers and layer norms without numbers give the groups that a trace with numbers gives."""
    model, x = build().eval(), torch.randn(2, 4, 5)
    prepare_(model, x)
    graph = trace_structure(model, x)
    monkeypatch.setattr(runs, "shape_copy", None)
    other = trace_structure(model, x)
    for one, two in zip(graph.groups, other.groups, strict=True):
        assert (one.name, one.width, one.kind, one.locked) == (two.name, two.width, two.kind, two.locked)
        assert [(part.module, part.tensors, part.channels) for part in one.parts] == [
            (part.module, part.tensors, part.channels) for part in two.parts
        ]
    assert len(free(graph)) == groups


class OwnMatrices(nn.Module):
    """Two matrices that the model itself holds, and layers around them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(12, 3)
        self.left, self.right = nn.Parameter(torch.randn(8, 8) / 3), nn.Parameter(torch.randn(8, 12) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(torch.relu(torch.relu(self.first(x)) @ self.left) @ self.right))


def test_a_parameter_of_the_model_itself_goes_by_its_own_name_and_is_ignored_by_it() -> None:
    """What it makes is 8 and 12 wide; a layer without a name could be neither read of nor be ignored."""
    model, inputs = OwnMatrices().eval(), (torch.randn(5, 4),)
    graph = trace_structure(model, inputs)
    assert {name: group.width for name, group in free(graph).items()} == {"first": 8, "left": 8, "right": 12}
    halved(model, inputs)
    reasons = {group.name: reason_to_lock(group, model, ignore=("right",), align=1) for group in graph.groups}
    assert reasons == {
        "first": None,
        "left": "ignored by 'right'",  # which reads it
        "right": "ignored by 'right'",
        "last": "it makes the model's output",
    }


def test_a_convolution_to_one_channel_is_no_depthwise_one() -> None:
    """What it reads is not coupled with what it makes: the eight channels before it go alone."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 1, 1), nn.ReLU(), nn.Conv2d(1, 6, 1)).eval()
    groups = trace_structure(model, (torch.randn(2, 3, 4, 4),)).groups
    assert [(group.width, group.locked) for group in groups if group.width == 8] == [(8, None)]
