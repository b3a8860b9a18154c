"""FactorizeLayers: what layers become at which target, what stays whole and why, and what later stages make of it."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from compressor import Pipeline, StageError
from compressor.files.export import export_onnx
from compressor.low_rank.settings import Channelwise, Energy, OutputError, Rank, Spatial, Tucker, WeightError
from compressor.notes.structure import FactorizedLayers, LockedLayers
from compressor.pruning.choice import goals
from compressor.pruning.choice.targets import Latency, Macs, Parameters
from compressor.runtime import OnnxModule
from compressor.stage import Context
from compressor.stages import Distill, PruneChannels, Quantize
from compressor.stages.layer_factorizing import FactorizeLayers
from compressor.structure.checkpoint import load_checkpoint, save_checkpoint
from compressor.structure.factored.chains import Chain
from compressor.training.held_values import clusters_entry
from compressor.training.held_zeros import zeros_entry
from compressor.workload import Workload, predict
from workbench import structure_clock
from workbench.tiny import TinyResNet


def run(stage, workload):
    """The model of the stage, its plan, the factorised layers and the reasons by name."""
    context = Context(progress=False, plan=[], details={})
    model = stage.apply(copy.deepcopy(workload.model), workload, context)
    told = FactorizedLayers.from_json(context.details)
    locked = LockedLayers.from_json(context.details)
    return (
        model,
        context.plan,
        {one.layer: one for one in told.factorized},
        {one.layer: one.reason for one in locked.locked},
    )


def vectors(model, example, *, classes=3, batches=None):
    """A workload of vectors whose classes are drawn, for `model`."""
    data = batches or [(torch.randn(8, *example.shape[1:]), torch.randint(0, classes, (8,))) for _ in range(3)]
    whole = Workload.from_datasets(
        model,
        train=(torch.randn(12, *example.shape[1:]), torch.arange(12) % classes),
        test=(example, torch.arange(len(example)) % classes),
    )
    return replace(whole, calibration=data, example_inputs=example)


def test_a_linear_layer_of_rank_two_becomes_its_product():
    """Energy 1 finds the two directions that there are; the model computes what it computed, with fewer weights."""
    layer = nn.Linear(20, 30)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(30, 2) @ torch.randn(2, 20))
    workload = vectors(nn.Sequential(layer, nn.ReLU(), nn.Linear(30, 3)).eval(), torch.randn(4, 20))
    model, plan, told, locked = run(FactorizeLayers(target=Energy(1.0), near=WeightError(), align=1), workload)
    assert plan == [
        {
            "kind": "factor",
            "layers": {"0": {"by": "svd", "ranks": [2], "shape": [30, 20]}},
            "why": {"target": "Energy(kept=1.0)", "errors": {"0": pytest.approx(0, abs=1e-12)}},
        }
    ]
    assert (told["0"].ranks, told["0"].full_ranks, told["0"].before, told["0"].after) == ((2,), (20,), 600, 100)
    assert locked == {"2": "no rank below the full one keeps 1"}
    torch.testing.assert_close(
        model(workload.example_inputs), workload.model(workload.example_inputs), atol=1e-5, rtol=1e-5
    )


def test_a_rank_gives_the_truncated_product():
    """The weights of the chain multiply to torch's truncated singular values, biases and all."""
    workload = vectors(nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3)).eval(), torch.randn(4, 12))
    model, *_ = run(FactorizeLayers(target=Rank(2), near=WeightError(), ignore=("2",)), workload)
    u, s, v = torch.linalg.svd(workload.model[0].weight)
    torch.testing.assert_close(model[0].weight, u[:, :2] @ torch.diag(s[:2]) @ v[:2], atol=1e-5, rtol=1e-5)
    assert torch.equal(model[0].bias, workload.model[0].bias)


def test_outputs_lose_less_when_their_inputs_are_known():
    """At one rank, calibration inputs of two strong directions make the outputs nearer than the weights alone do."""
    spread = torch.tensor([10.0, 10.0, *[0.1] * 14])
    data = [(torch.randn(64, 16) * spread, torch.randint(0, 3, (64,))) for _ in range(4)]
    workload = vectors(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).eval(), data[0][0], batches=data)
    errors = {}
    for near in (OutputError(batches=4), WeightError()):
        model, _, told, _ = run(FactorizeLayers(target=Rank(2), near=near, ignore=("2",)), workload)
        x = torch.cat([inputs for inputs, _ in data])
        wanted = x @ workload.model[0].weight.detach().t()
        errors[near] = float((x @ model[0].weight.detach().t() - wanted).square().sum() / wanted.square().sum())
        if near == OutputError(batches=4):
            assert told["0"].error == pytest.approx(errors[near], rel=0.2)
    assert errors[OutputError(batches=4)] < 0.01
    assert errors[WeightError()] > 0.3


@pytest.mark.parametrize(
    ("kernels", "by", "kinds"),
    [
        (Channelwise(), "svd", [(8, 16, 3, 3), (16, 8, 1, 1)]),
        (Spatial(), "spatial", [(8, 16, 3, 1), (16, 8, 1, 3)]),
        (Tucker(), "tucker", [(8, 16, 1, 1), (8, 8, 3, 3), (16, 8, 1, 1)]),
    ],
)
def test_kernels_are_taken_apart_as_asked(kernels, by, kinds, tiny_workload):
    """A 3x3 convolution of 16 channels at rank 8; the classifier is a matrix whatever is asked."""
    stage = FactorizeLayers(target=Rank(8), kernels=kernels, ignore=("conv1", "layer2", "linear"))
    model, _, told, locked = run(stage, tiny_workload)
    assert {one.by for one in told.values()} == {by}
    assert [tuple(part.weight.shape) for part in model.layer1[0].conv1] == kinds
    assert locked["linear"] == "ignored by 'linear'"
    assert locked["layer2.0.conv1"] == "ignored by 'layer2'"


class Gated(nn.GRU):
    """Somebody's own."""


class Everything(nn.Module):
    """Layers of all kinds that stay whole, and one that does not."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.wide = nn.Linear(16, 32)
        self.narrow = nn.Linear(32, 16)
        self.depthwise = nn.Conv1d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv1d(16, 16, 3, padding=1, groups=2)
        self.back = nn.ConvTranspose1d(16, 16, 3, padding=1)
        self.rnn = Gated(16, 16, batch_first=True)
        self.unused = nn.Linear(16, 16)
        self.read, self.also_read = nn.Linear(16, 16), nn.Linear(16, 16)
        self.hooked = nn.Linear(16, 16)
        self.hooked.register_forward_hook(double)
        self.out = nn.Linear(16, 20, bias=False)
        self.out.weight = self.words.weight

    def forward(self, words):
        x = self.narrow(torch.relu(self.wide(self.words(words)))).transpose(1, 2)
        x, _ = self.rnn(self.back(self.grouped(self.depthwise(x))).transpose(1, 2))
        return self.out(self.hooked(self.also_read(x @ self.read.weight) @ self.also_read.weight)).mean(dim=1)


def double(_module, _args, output):
    return 2 * output


def test_what_stays_whole_is_told_with_its_reason():
    """Every layer that cannot become a chain has a reason of its own, and the others become chains."""
    words = torch.randint(0, 20, (4, 6))
    data = [(torch.randint(0, 20, (4, 6)), torch.randint(0, 20, (4,))) for _ in range(2)]
    workload = replace(
        vectors(Everything().eval(), torch.randn(40, 1), classes=20), calibration=data, example_inputs=words
    )
    _, _, told, locked = run(FactorizeLayers(target=Rank(4)), workload)
    assert set(told) == {"wide", "narrow"}
    wanted = {
        "words": "Embedding is no plain",
        "out": "its weight is that of words",
        "depthwise": "depthwise",
        "grouped": "2 groups",
        "back": "ConvTranspose1d is no plain",
        "rnn": "Gated is no nn.LSTM",
        "unused": "it is not called",
        "read": "it is not called",
        "also_read": "multiplied outside of it, too",
        "hooked": "hooks hang on it",
    }
    assert set(locked) == set(wanted)
    for name, reason in wanted.items():
        assert reason in locked[name], (name, locked[name])


def test_a_layer_that_runs_twice_stays_one():
    """A shared layer becomes one chain at both of its names, and both calls count."""
    shared = nn.Linear(16, 16)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(16, 3)).eval()
    factored, _, told, _ = run(FactorizeLayers(target=Rank(4), ignore=("3",)), vectors(model, torch.randn(4, 16)))
    assert factored[0] is factored[2]
    assert isinstance(factored[0], Chain)
    assert set(told) == {"0"}


def test_computed_weights_are_made_plain_first():
    """A layer with weight norm is folded, and the plan says both, so that the model is rebuilt from its class."""

    def make():
        torch.manual_seed(3)
        return nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)), nn.ReLU(), nn.Linear(16, 3)
        ).eval()

    model, plan, told, _ = run(FactorizeLayers(target=Rank(4), ignore=("2",)), vectors(make(), torch.randn(4, 16)))
    assert [entry["kind"] for entry in plan] == ["fold", "factor"]
    assert set(told) == {"0"}
    assert [tuple(part.weight.shape) for part in model[0]] == [(4, 16), (16, 4)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target": Rank(97)},
            r"no layer has rank 97: the highest is that of 'layer2.0.conv2', in \[1, 96\]; lower rank",
        ),
        ({"target": Rank(33), "kernels": Channelwise()}, r"no layer has rank 33: the highest is .*, in \[1, 32\]"),
        ({"target": Rank(5), "ignore": ("layer*", "conv1")}, r"no layer has rank 5: .*'linear', in \[1, 4\]"),
        ({"ignore": ("*",)}, r"no layer of TinyResNet can be factorised.*ignored by '\*'"),
        (
            {"target": Rank(4), "ignore": ("layer*", "conv1")},
            "linear: by svd at rank 4 it would compute 1.12 times as much",
        ),
        (
            {"target": Energy(0.5), "ignore": ("layer*", "conv1")},
            "linear: its full rank 4 is not above the aligned minimum",
        ),
    ],
)
def test_nothing_to_do_is_refused(settings, message, tiny_workload):
    """The message holds the reason of each layer and a way out."""
    with pytest.raises(StageError, match=message):
        run(FactorizeLayers(**settings), tiny_workload)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Energy(0.0), "kept is the part"),
        (lambda: Energy(95), "did you mean 0.95"),
        (lambda: Rank(0), "at least 1"),
        (lambda: Rank(2.5), "whole number"),
        (lambda: OutputError(batches=0), "at least 1"),
        (lambda: FactorizeLayers(align=0), "1 rounds nothing"),
        (lambda: FactorizeLayers(ignore="fc"), r"write \('fc',\)"),
        (lambda: FactorizeLayers(target=Macs(0.5, efficiency=0.9)), r"write Macs\(0.5\) or Latency\(0.5\)"),
    ],
)
def test_settings_are_refused_before_work(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_small_head_does_not_stop_the_others(tiny_workload) -> None:
    """The head of 4 classes has rank 4: it stays whole and says so, and wider layers get the rank that is asked for."""
    _, _, told, locked = run(FactorizeLayers(target=Rank(8), kernels=Channelwise()), tiny_workload)
    assert locked["linear"] == "its rank is at most 4, below the 8 that is asked for"
    assert "layer2.1.conv1" in told
    assert all(tuple(layer.ranks) == (8,) for layer in told.values())


@pytest.mark.parametrize("target", [Macs(0.6), Parameters(0.6)])
def test_a_counted_target_is_met(target, trained_workload):
    """What is left of the multiply-accumulates or parameters is at most what was asked, as the report says."""
    context = Context(progress=False, plan=[], details={})
    model = FactorizeLayers(target=target, align=4).apply(
        copy.deepcopy(trained_workload.model), trained_workload, context
    )
    assert 0.3 < context.details["target"]["fraction_of_reference"] <= 0.6
    assert context.details["target"]["predicted"] == context.details["target"]["measured"]
    images, targets = next(iter(trained_workload.calibration))
    right = (predict(model, images).argmax(1) == targets).float().mean()
    assert right > 0.5


@pytest.mark.slow
def test_a_latency_is_met_by_the_table_and_the_clock(trained_workload, monkeypatch):
    """By a clock and a table that count products the target is met at once; each candidate was priced by the table."""
    clock = structure_clock.install(monkeypatch)
    context = Context(progress=False, plan=[], details={})
    FactorizeLayers(target=Latency(0.8), align=4).apply(
        copy.deepcopy(trained_workload.model), trained_workload, context
    )
    told = context.details["target"]
    assert 0.6 < told["fraction_of_reference"] <= 0.8
    assert told["predicted"] == pytest.approx(told["measured"], rel=1e-3)
    assert len(clock.timed) == 2


@pytest.mark.slow
def test_layers_that_no_chain_makes_faster_stay_whole(trained_workload, monkeypatch):
    """Where the table finds 1x1 convolutions slow, nothing becomes faster but separable kernels, and that is said."""
    structure_clock.install(monkeypatch)

    class Slow(structure_clock.CountingTable):
        def milliseconds(self, operators, precision="float32"):
            return [
                operator.macs / 1e6 + 0.5 * (operator.kernel == operator.stride == (1, 1)) for operator in operators
            ]

    monkeypatch.setattr(goals, "LatencyTable", Slow)
    only = {"near": WeightError(), "align": 4}
    with pytest.raises(StageError, match=r"layer1\.0\.conv1, .*: no chain saves ms: by svd at rank"):
        run(FactorizeLayers(target=Latency(0.8), kernels=Channelwise(), **only), trained_workload)
    _, _, told, _ = run(FactorizeLayers(target=Latency(0.8), **only), trained_workload)
    assert {one.by for one in told.values()} == {"spatial"}


def test_the_plan_and_the_weights_rebuild_the_model(trained_workload, tmp_path):
    """A checkpoint of the factorised model gives its very outputs, from the user's class and JSON."""
    model, plan, *_ = run(FactorizeLayers(target=Macs(0.7), align=4), trained_workload)
    save_checkpoint(tmp_path, model, json.loads(json.dumps(plan)))
    loaded = load_checkpoint(tmp_path, TinyResNet)
    x = trained_workload.example_inputs
    assert torch.equal(loaded(x), model.eval()(x))


@pytest.mark.slow
def test_pruning_distillation_and_quantization_follow(trained_workload, tmp_path):
    """A pipeline goes on with the chains: their channels can be pruned, they learn, and they become integers."""
    stages = [
        FactorizeLayers(target=Macs(0.7), align=4),
        PruneChannels(remove=0.25, align=4),
        Distill(epochs=1, tail_epochs=0, views=1),
        Quantize(),
    ]
    outcome = Pipeline(stages).run(trained_workload, out=tmp_path, progress=False)
    steps = {step.stage: step for step in outcome.report.steps}
    # What one epoch teaches is not asked for: that the chains can learn is.
    assert all(steps[name].kept for name in ("factorize_layers", "prune_channels", "quantize"))
    assert steps["distill"].kept or "no epoch was better" in steps["distill"].reason
    pruned = {
        group["layer"] for group in steps["prune_channels"].details["groups"] if group["before"] != group["after"]
    }
    chained = {one["layer"] for one in steps["factorize_layers"].details["factorized"]}
    assert any(group.rpartition(".")[0] in chained for group in pruned)
    assert steps["quantize"].measurement.size_bytes < steps["prune_channels"].measurement.size_bytes
    assert steps["quantize"].measurement.score.value > 0.5


class Encoder(nn.Module):
    """Torch's encoder layers over vectors, batch first or not."""

    def __init__(self, *, batch_first=True):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.batch_first = batch_first
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        x = self.encoder(x) if self.batch_first else self.encoder(x.transpose(0, 1)).transpose(0, 1)
        return self.out(x.mean(dim=1))


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_becomes_chains(batch_first, tmp_path):
    """Projections and feed-forward layers of torch's encoder; the fused path of eval mode agrees, and so do files."""
    workload = vectors(Encoder(batch_first=batch_first).eval(), torch.randn(4, 6, 16))
    model, plan, told, locked = run(FactorizeLayers(target=Rank(4), ignore=("out",)), workload)
    assert [entry["kind"] for entry in plan] == ["attention", "projections", "factor"]
    ends = ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2")
    assert set(told) == {f"encoder.layers.{number}.{end}" for number in range(2) for end in ends}
    assert set(locked) == {"out"}
    x = workload.example_inputs
    with torch.no_grad():
        # Torch's encoder reads the weights of its layers by itself there.
        fused = model.eval()(x)
    torch.testing.assert_close(model(x), fused, atol=1e-5, rtol=1e-5)
    save_checkpoint(tmp_path, model, json.loads(json.dumps(plan)))
    torch.testing.assert_close(load_checkpoint(tmp_path, lambda: Encoder(batch_first=batch_first))(x), fused)


def test_heads_of_attention_in_chains_can_be_pruned():
    """After the exchange the heads are still a group, and half of them go."""
    workload = vectors(Encoder().eval(), torch.randn(4, 6, 16))
    model, *_ = run(FactorizeLayers(target=Rank(4), ignore=("out",)), workload)
    context = Context(progress=False, plan=[], details={})
    pruned = PruneChannels(remove=0.5, align=1, ignore=("*.linear1*",)).apply(model, workload, context)
    heads = {one["layer"]: (one["before"], one["after"]) for one in context.details["groups"]}
    assert (4, 2) in [size for name, size in heads.items() if "in_proj" in name], heads
    assert pruned.encoder.layers[0].self_attn.num_heads < 4


class Crossing(nn.Module):
    """Queries from one tensor, keys and values from another."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        return self.out(self.attention(x, 2 * x, x + 1)[0].mean(dim=1))


def test_projections_of_several_tensors_stay_whole():
    """A matrix of which each tensor takes its third is not called as a layer, and that is said."""
    workload = vectors(Crossing().eval(), torch.randn(4, 6, 16))
    _, _, told, locked = run(FactorizeLayers(target=Rank(4), ignore=("out",)), workload)
    assert set(told) == {"attention.out_proj"}
    assert "it is not called" in locked["attention.in_proj"]


class Speaker(nn.Module):
    """A recurrent classifier of wide frames."""

    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.rnn = kind(48, 8, 2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        return self.out(self.rnn(x)[0].mean(dim=1))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_inputs_of_recurrent_layers_become_thinner(kind, tmp_path):
    """At rank 4 a step reads 4 numbers in place of 48, both directions the same; it exports and is rebuilt."""
    workload = vectors(Speaker(kind).eval(), torch.randn(4, 6, 48))
    model, plan, told, _ = run(FactorizeLayers(target=Rank(4), ignore=("out",)), workload)
    gates = 4 if kind is nn.LSTM else 3
    assert plan[-1]["layers"] == {"rnn": {"by": "svd", "ranks": [4], "shape": [2 * gates * 8, 48]}}
    assert tuple(model.rnn.projection.weight.shape) == (4, 48)
    assert tuple(model.rnn.recurrent.weight_ih_l0.shape) == (gates * 8, 4)
    whole = torch.cat([workload.model.rnn.weight_ih_l0, workload.model.rnn.weight_ih_l0_reverse]).detach()
    assert (told["rnn"].before, told["rnn"].after) == (whole.numel(), 4 * (48 + len(whole)))
    save_checkpoint(tmp_path, model, json.loads(json.dumps(plan)))
    x = workload.example_inputs
    assert torch.equal(load_checkpoint(tmp_path, lambda: Speaker(kind))(x), model.eval()(x))
    session = export_onnx(model, workload)
    torch.testing.assert_close(OnnxModule(session.onnx_bytes)(x), model(x), atol=1e-4, rtol=1e-4)


def test_the_projection_of_a_recurrent_layer_counts(monkeypatch):
    """What is left of the multiply-accumulates is counted with the projection and the layers above."""
    workload = vectors(Speaker().eval(), torch.randn(4, 6, 48))
    context = Context(progress=False, plan=[], details={})
    FactorizeLayers(target=Macs(0.7), align=4).apply(copy.deepcopy(workload.model), workload, context)
    assert context.details["target"]["predicted"] == context.details["target"]["measured"]
    assert context.details["target"]["fraction_of_reference"] <= 0.7


def test_zeros_and_equal_values_of_earlier_stages_are_not_lost():
    """A layer whose zeros or shared values are to stay is left whole, and so is attention whose matrix has some."""
    workload = vectors(Encoder().eval(), torch.randn(4, 6, 16))
    before = [
        zeros_entry(["encoder.layers.0.linear1.weight"]),
        clusters_entry(["encoder.layers.1.self_attn.in_proj_weight"]),
    ]
    context = Context(progress=False, plan=[], plan_before=before, details={})
    model = FactorizeLayers(target=Rank(4), ignore=("out",)).apply(copy.deepcopy(workload.model), workload, context)
    told = {one["layer"] for one in context.details["factorized"]}
    assert "encoder.layers.1.linear1" in told
    assert "encoder.layers.0.linear1" not in told
    assert model.encoder.layers[1].self_attn.in_proj is None
    reasons = {one["layer"]: one["reason"] for one in context.details["locked"]}
    assert "an earlier stage made zeros or equal values" in reasons["encoder.layers.0.linear1"]
    assert "encoder.layers.1.self_attn" in reasons
