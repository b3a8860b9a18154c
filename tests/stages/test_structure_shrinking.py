"""Blocks and widths in one decision: targets are met, what costs least loss goes, and what cannot is said."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.batches import Batches
from compressor.errors import StageError
from compressor.files.export import export_onnx
from compressor.measuring.macs import count_macs
from compressor.metrics import Metric
from compressor.pruning.choice.targets import Latency, Macs, Parameters
from compressor.pruning.ranking.criteria import L1
from compressor.stage import Context
from compressor.stages.structure_shrinking import ShrinkStructure
from compressor.structure.plan import apply_plan_
from compressor.target import Isa, Target
from compressor.workload import Workload, predict
from workbench import structure_clock
from workbench.same_data import same_data
from workbench.tiny import Block, TinyResNet, make_workload


def shrink(stage: ShrinkStructure, workload: Workload, **settings) -> tuple[nn.Module, Context]:
    context = Context(progress=False, **settings)
    return stage.apply(copy.deepcopy(workload.model), workload, context).eval(), context


def dropped(context: Context) -> set[str]:
    return {name for entry in context.plan if entry["kind"] == "identity" for name in entry["modules"]}


def widths(context: Context) -> dict[str, tuple[int, int]]:
    return {entry["layer"]: (entry["before"], entry["after"]) for entry in context.details["groups"]}


def macs_of(model: nn.Module, workload: Workload) -> int:
    return count_macs(export_onnx(model, workload).onnx_bytes, workload.example_inputs)


class Chain(nn.Module):
    """Residual blocks of two linear layers, of which those at `idle` add nothing, then a head."""

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(F.relu(self.up(x)))

    def __init__(self, idle: tuple[int, ...], count: int = 4) -> None:
        super().__init__()
        self.steps = nn.Sequential(*(self.Step() for _ in range(count)))
        self.head = nn.Linear(8, 2)
        for index in idle:
            nn.init.zeros_(self.steps[index].down.weight)
            nn.init.zeros_(self.steps[index].down.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.steps(x))


def judged_by_its_outputs(model: nn.Module, inputs: Tensor) -> Workload:
    """A model that is to keep its outputs for these inputs: whatever changes them costs."""
    model.eval()
    with torch.no_grad():
        data = Batches((inputs, model(inputs)), batch_size=16)
    return same_data(model, data, inputs[:2], loss=F.mse_loss, metric=Metric.named("mse"))


def chain_workload(model: Chain) -> Workload:
    return judged_by_its_outputs(model, torch.randn(64, 8))


def test_blocks_that_do_nothing_go_first() -> None:
    """Of four blocks two add nothing: at half the products those two are gone, and the outputs are the same."""
    workload = chain_workload(Chain(idle=(1, 2)))
    shrunk, context = shrink(ShrinkStructure(target=Macs(0.52), criterion=L1()), workload)
    assert dropped(context) == {"steps.1", "steps.2"}
    inputs = workload.example_inputs
    torch.testing.assert_close(predict(shrunk, inputs), predict(workload.model, inputs))
    # 4 x 256 + 16 products, of which 2 x 256 + 16 are left.
    assert context.details["target"]["measured"] == 528
    assert context.details["target"]["reference"] == 1040
    assert [entry["kept"] for entry in context.details["blocks"]] == [True, False, False, True]


def test_idle_units_go_where_no_block_is_idle() -> None:
    """With the half of every block's units idle, all blocks stay and lose that half."""
    model = Chain(idle=())
    with torch.no_grad():
        for step in model.steps:
            step.up.weight[::2] = 0
            step.up.bias[::2] = -1
            step.down.weight[:, ::2] = 0
    workload = chain_workload(model)
    shrunk, context = shrink(ShrinkStructure(target=Macs(0.52), criterion=L1(), align=4), workload)
    assert not dropped(context)
    assert set(widths(context).values()) == {(16, 8)}
    inputs = workload.example_inputs
    torch.testing.assert_close(predict(shrunk, inputs), predict(workload.model, inputs))


class Recurrent(nn.Module):
    """The last outputs of three layers of units, of which the second only hands through what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.head = nn.RNN(4, 8, 3, batch_first=True, nonlinearity="relu"), nn.Linear(8, 2)
        with torch.no_grad():
            for name, weight in self.memory.named_parameters():
                if name.endswith("_l1"):
                    weight.copy_(torch.eye(8) if name == "weight_ih_l1" else torch.zeros_like(weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.memory(x)[0][:, -1])


def test_a_recurrent_layer_that_does_nothing_goes() -> None:
    """At 0.75 of the products it is the idle second layer of a stack that is gone, not units, and outputs stay."""
    workload = judged_by_its_outputs(Recurrent(), torch.randn(64, 5, 4))
    shrunk, context = shrink(ShrinkStructure(target=Macs(0.75), criterion=L1(), align=4), workload)
    assert [entry["kept"] for entry in context.details["blocks"]] == [False, True]
    assert context.plan[-1]["dropped"] == {"memory": [1]}
    assert widths(context) == {"memory": (8, 8)}
    assert shrunk.memory.num_layers == 2
    torch.testing.assert_close(
        predict(shrunk, workload.example_inputs), predict(workload.model, workload.example_inputs)
    )
    # 5 steps of 8 units: 4 + 8 inputs, then 16 for each of two more layers, of which one is left.
    assert context.details["target"]["reference"] == 5 * 8 * (12 + 16 + 16) + 16
    assert context.details["target"]["measured"] == 5 * 8 * (12 + 16) + 16 == macs_of(shrunk, workload)
    rebuilt = apply_plan_(copy.deepcopy(workload.model), json.loads(json.dumps(context.plan)))
    assert torch.equal(predict(rebuilt, workload.example_inputs), predict(shrunk, workload.example_inputs))


def test_layers_and_units_go_together() -> None:
    """Of 418 parameters, 90 are left with 4 of 8 units in two of three layers: nothing else within 0.22 is so much."""
    workload = judged_by_its_outputs(Recurrent(), torch.randn(64, 5, 4))
    shrunk, context = shrink(ShrinkStructure(target=Parameters(0.22), criterion=L1(), align=4, rounds=2), workload)
    assert context.details["target"]["reference"] == 8 * (4 + 8 + 2) + 2 * 8 * (8 + 8 + 2) + 18
    assert context.details["target"]["measured"] == context.details["target"]["predicted"] == 90
    assert (shrunk.memory.num_layers, shrunk.memory.hidden_size) == (2, 4)
    rebuilt = apply_plan_(copy.deepcopy(workload.model), json.loads(json.dumps(context.plan)))
    assert torch.equal(predict(rebuilt, workload.example_inputs), predict(shrunk, workload.example_inputs))


class Plain(nn.Module):
    """Without a shortcut around it, the block's inputs and outputs are channels of two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 2)
        with torch.no_grad():
            for layer in (self.block[0], self.block[2]):
                layer.weight.copy_(torch.eye(8))
                layer.bias.zero_()
            # The first half of what the block is given matters least, of what it gives the second half.
            self.stem.weight[:4] *= 0.1
            self.block[2].weight[4:] *= 0.1

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x).relu()))


def test_a_block_between_other_channels_is_kept() -> None:
    """Narrowed to its last channels before the block and its first ones after it, the model needs the block between."""
    workload = judged_by_its_outputs(Plain(), torch.randn(64, 4))
    stage = ShrinkStructure(target=Macs(0.15), criterion=L1(), align=4, rounds=1)
    with pytest.raises(StageError, match=r"block: the channels left before and after it are not the same ones"):
        shrink(stage, workload)


def test_products_are_those_of_the_exported_file(tiny_workload: Workload) -> None:
    """What is left, counted by the operators of the exported file, is as predicted and within the target."""
    shrunk, context = shrink(ShrinkStructure(target=Macs(0.5), align=8, batches=1, rounds=2), tiny_workload)
    told = context.details["target"]
    left = macs_of(shrunk, tiny_workload)
    assert told["measured"] == pytest.approx(left, rel=1e-4) == told["predicted"]
    # The convolutions of 8 x 8 and 4 x 4 maps, and the head.
    whole = 64 * 9 * (3 * 16 + 4 * 16 * 16) + 16 * (9 * (16 * 32 + 5 * 32 * 32) + 16 * 32) + 32 * 4
    assert told["reference"] == pytest.approx(whole, rel=1e-4)
    assert left <= 0.5 * whole
    assert all(after % 8 == 0 for _, after in widths(context).values())


def test_parameters_are_counted(tiny_workload: Workload) -> None:
    """At most 0.4 of the parameters are left, as many as were predicted."""
    shrunk, context = shrink(ShrinkStructure(target=Parameters(0.4), align=8, batches=1, rounds=2), tiny_workload)
    left, whole = (sum(map(Tensor.numel, model.parameters())) for model in (shrunk, tiny_workload.model))
    assert left <= 0.4 * whole
    assert context.details["target"]["measured"] == pytest.approx(left, rel=1e-4)
    assert context.details["target"]["predicted"] == pytest.approx(left, rel=1e-4)


def test_plan_alone_rebuilds_the_network(trained_workload: Workload) -> None:
    """The plan, through JSON, turns the reference into the smaller network bit by bit."""
    stage = ShrinkStructure(target=Macs(0.4), align=8, batches=1, rounds=2)
    shrunk, context = shrink(stage, trained_workload)
    assert dropped(context)
    rebuilt = apply_plan_(copy.deepcopy(trained_workload.model), json.loads(json.dumps(context.plan)))
    inputs = trained_workload.example_inputs
    assert torch.equal(predict(rebuilt, inputs), predict(shrunk, inputs))


def test_latency_is_predicted_measured_and_met(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that counts products, 0.6 of the time is reached at the first choice."""
    clock, workload = structure_clock.install(monkeypatch), chain_workload(Chain(idle=(1,)))
    shrunk, context = shrink(ShrinkStructure(target=Latency(0.6), align=4, batches=1, rounds=2), workload)
    told = context.details["target"]
    assert told["reference"] == pytest.approx(1040 / 1e6)
    assert told["measured"] == pytest.approx(macs_of(shrunk, workload) / 1e6, rel=1e-4)
    assert 0.5 * told["reference"] < told["measured"] <= 0.6 * told["reference"]
    assert told["predicted"] == pytest.approx(told["measured"], rel=1e-3)
    assert len(clock.timed) == 2
    assert "first_choice" not in context.details


def test_a_wrong_prediction_is_corrected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrower files that take a quarter longer than the table says are chosen again, narrower still."""
    clock, workload = structure_clock.install(monkeypatch, factor=1.25), chain_workload(Chain(idle=(1,)))
    _, context = shrink(ShrinkStructure(target=Latency(0.6), align=4, batches=1, rounds=2), workload)
    first, second = context.details["first_choice"], context.details["target"]
    assert first["measured"] == pytest.approx(1.25 * first["predicted"], rel=1e-3)
    assert second["measured"] <= 1.03 * second["limit"] < first["measured"]
    assert len(clock.timed) == 3


def test_what_turns_out_slower_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where narrower files take two hundred times what the table says, nothing is gained, and that is said."""
    structure_clock.install(monkeypatch, factor=200.0)
    with pytest.raises(StageError, match=r"the best choice was measured at .* ms, no less than the .* ms it has"):
        shrink(ShrinkStructure(target=Latency(0.6), align=4, batches=1, rounds=2), chain_workload(Chain(idle=(1,))))


def test_integer_form_and_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit in milliseconds holds for the 8-bit file that is timed."""
    structure_clock.install(monkeypatch)
    stage = ShrinkStructure(target=Latency(ms=0.0007, form="int8"), align=4, batches=1, rounds=2)
    _, context = shrink(stage, chain_workload(Chain(idle=(1,))))
    assert context.details["target"]["limit"] == 0.0007
    assert context.details["target"]["measured"] <= 0.0007


def test_widths_suit_the_form_that_ships() -> None:
    """For float kernels with blocks of 16, layers of 32 become 16 and layers of 16 may become 8; in 8 bits 24 too."""
    search = ShrinkStructure(target=Latency(0.5))
    whole = ShrinkStructure(target=Macs(0.5))
    integer = ShrinkStructure(target=Latency(0.5, form="int8"))
    assert (search.multiple_of_width(32, 16), search.multiple_of_width(16, 16)) == (16, 8)
    assert (integer.multiple_of_width(32, 16), whole.multiple_of_width(16, 16)) == (8, 16)


def test_out_of_reach_is_said_with_what_is_left(tiny_workload: Workload) -> None:
    """A target below what locked layers alone cost is refused with the least that can be reached."""
    stage = ShrinkStructure(target=Macs(0.01), align=8, batches=1, rounds=1)
    with pytest.raises(StageError, match=r"Macs\(fraction=0\.01\) cannot be reached: .* \d+% of the reference's MACs"):
        shrink(stage, tiny_workload)


def test_a_model_within_the_target_is_refused(tiny_workload: Workload) -> None:
    """A second shrinking to the same fraction of the reference finds the target reached."""
    stage = ShrinkStructure(target=Macs(0.6), align=8, batches=1, rounds=1)
    shrunk, _ = shrink(stage, tiny_workload)
    with pytest.raises(StageError, match=r"the model already has .* MACs, within the .* MACs that"):
        stage.apply(shrunk, tiny_workload, Context(progress=False))


def test_blocks_and_layers_can_be_kept(tiny_workload: Workload) -> None:
    """Without block globs nothing is dropped, and ignored layers keep their width."""
    stage = ShrinkStructure(target=Macs(0.7), blocks=(), ignore=("layer1.*",), align=8, batches=1, rounds=1)
    _, context = shrink(stage, tiny_workload)
    assert not dropped(context)
    assert all(name.startswith("layer2") for name in widths(context))
    reasons = {entry["layer"]: entry["reason"] for entry in context.details["locked"]}
    assert reasons["layer1.0.conv1"] == "ignored by 'layer1.*'"


class Fragile(TinyResNet):
    """A network whose code asks one of its blocks for a layer."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.layer2[1].conv1.out_channels
        return super().forward(x)


def test_what_the_network_needs_is_locked_and_the_rest_makes_up() -> None:
    """A block that the code asks for stays, with the reason, and the target is met without it."""
    torch.manual_seed(0)
    workload = make_workload(Fragile().eval())
    _, context = shrink(ShrinkStructure(target=Macs(0.5), align=8, batches=1, rounds=2), workload)
    assert "layer2.1" not in dropped(context)
    reasons = {entry["layer"]: entry["reason"] for entry in context.details["locked"]}
    assert "has no attribute 'conv1'" in reasons["layer2.1"]
    assert context.details["target"]["fraction_of_reference"] <= 0.5


def test_same_seed_same_choice(tiny_workload: Workload) -> None:
    """Two runs give one plan, on any machine's float blocks."""
    stage = ShrinkStructure(target=Macs(0.6), batches=1, rounds=2)
    target = Target(isa=Isa.X86_VNNI)
    _, first = shrink(stage, tiny_workload, target=target)
    torch.randn(3)
    _, again = shrink(stage, tiny_workload, target=target)
    assert first.plan == again.plan
    assert isinstance(tiny_workload.model.layer1[0], Block)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": "layer1"}, "blocks is a tuple of globs"),
        ({"ignore": "layer1"}, "ignore is a tuple of globs"),
        ({"align": 0}, "align .* got 0"),
        ({"rounds": 0}, "rounds counts how often losses are measured, at least 1; got 0"),
        ({"batches": 0}, "losses are measured on, at least 1; got 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    """Each wrong value is refused with what was wanted and got."""
    with pytest.raises(ValueError, match=message):
        ShrinkStructure(target=Macs(0.5), **settings)
