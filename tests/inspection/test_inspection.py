"""What the doctor finds in a model: shares of time, locks with their lines, the best case and a recipe that runs."""

import inspect as source
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper
from rich.console import Console
from torch import nn

from compressor.files.export import export_onnx
from compressor.inspection import inspection as inspection_module
from compressor.inspection.inspection import DroppableBlock, Findings, Inspection, PrunableGroup, inspect, name_pattern
from compressor.inspection.recommendation import recommend
from compressor.inspection.shares import Shares
from compressor.inspection.text import print_inspection
from compressor.measuring.node_times import NodeTime, _places, node_times
from compressor.pruning.choice.targets import Latency
from compressor.recipe.recipe import Recipe
from compressor.stage import stage_name
from compressor.structure.couplings import Coupled, Part
from compressor.structure.source_lines import call_lines, error_line, shortened
from compressor.target import Isa, Target
from workbench.tiny import TinyResNet, make_workload

TARGET = Target(isa=Isa.X86_VNNI)


def part(module: str, *tensors: tuple[str, int], width: int, makes: bool = False) -> Part:
    indices = tuple(range(width))
    return Part(module=module, tensors=tensors, indices=indices, channels=indices, makes=makes, is_norm=False)


def spent(layer: str, ms: float, *, weighted: bool = True, module: str | None = None) -> NodeTime:
    return NodeTime(
        operator="Gemm" if weighted else "Relu",
        layer=layer,
        module=layer if module is None else module,
        weighted=weighted,
        ms=ms,
    )


HIDDEN = Coupled(
    name="0",
    width=8,
    parts=(part("0", ("0.weight", 0), ("0.bias", 0), width=8, makes=True), part("2", ("2.weight", 1), width=8)),
    makes_output=False,
    opaque=False,
)


def test_shares_of_a_hidden_width() -> None:
    """A width decides its layer, what works on its result and its reader, but not what follows the reader."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), nn.Sigmoid())
    times = [spent("0", 3), spent("0", 1, weighted=False), spent("2", 2), spent("2", 4, weighted=False)]
    shares = Shares.of(model, times)
    assert shares.time([HIDDEN]) == pytest.approx((3 + 1 + 2) / 10)
    # 4 x 8 weights and 8 biases make it, 8 x 2 weights read it; 2 biases stay.
    assert shares.held_by_groups([HIDDEN]) == pytest.approx(56 / 58)
    assert shares.held_by_groups([HIDDEN, HIDDEN]) == pytest.approx(56 / 58)
    assert shares.operators() == {"Gemm": 0.5, "Relu": 0.5}
    assert Shares.of(model, ()).time([HIDDEN]) is None


def test_shares_of_blocks() -> None:
    """A block holds the time and the parameters of everything below its name, and of nothing that begins alike."""
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 3)), nn.Linear(3, 1))
    shares = Shares.of(model, [spent("0.0", 1), spent("0.0", 1, weighted=False, module="0"), spent("1", 2)])
    assert shares.time(blocks=["0"]) == 0.5
    assert shares.held_by_blocks(["0"]) == pytest.approx(12 / 16)
    assert Shares.of(model, [spent("01", 1)]).time(blocks=["0"]) == 0


def test_what_a_node_belongs_to() -> None:
    """Weights name their layer; an addition belongs to the block that ends with it, global pooling to the model."""
    weights = ("stem.weight", "block.conv.weight", "head.weight")
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight"], ["a"]),
        helper.make_node("Conv", ["a", "block.conv.weight"], ["b"]),
        helper.make_node("Add", ["b", "a"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "head.weight"], ["e"]),
    ]
    constants = [helper.make_tensor(name, onnx.TensorProto.FLOAT, [1], [0.0]) for name in weights]
    proto = helper.make_model(helper.make_graph(nodes, "g", [], [], constants))
    places = _places(proto, {"", "stem", "block", "block.conv", "head"})
    assert [place.layer for place in places] == ["stem", "block.conv", "block.conv", "block.conv", "head"]
    assert [place.module for place in places] == ["stem", "block.conv", "block", "", "head"]
    assert [place.weighted for place in places] == [True, True, False, False, True]


def test_times_of_an_exported_model(tiny_workload) -> None:
    """Every operator that runs has a positive time and a layer, and every layer with weights has some time."""
    model = tiny_workload.model
    names = [name for name, _ in model.named_modules()]
    file = export_onnx(model, tiny_workload).onnx_bytes
    times = node_times(file, tiny_workload.example_inputs, modules=names, target=TARGET, seconds=0.1)
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert {time.layer for time in times} == layers
    assert all(time.ms > 0 for time in times)
    assert 0 < sum(time.ms for time in times) < 50


class Flattening(nn.Module):
    """A model whose code knows one of its own widths, and another width never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, 2, 1)
        self.second = nn.Conv2d(32, 32, 3, 2, 1)
        self.hidden = nn.Linear(128, 64)
        self.spare = nn.Linear(8, 8)
        self.out = nn.Linear(64, 4)

    def forward(self, x):
        x = self.second(self.first(x).relu()).relu()
        x = x.view(-1, 128)
        return self.out(self.hidden(x).relu())


def line_of(function, text: str) -> str:
    lines, first = source.getsourcelines(function)
    offset = next(number for number, line in enumerate(lines) if text in line)
    return f"test_inspection.py:{first + offset}"


def test_locks_name_the_line() -> None:
    """A width that the code writes down is locked with that line, the output with the line that calls it."""
    found = inspect(make_workload(Flattening().eval()), target=TARGET, seconds=0.1)
    groups = {group.name: group for group in found.found.groups}
    assert groups["first"].locked is None
    assert groups["hidden"].locked is None
    assert line_of(Flattening.forward, "x.view") in groups["second"].locked
    assert groups["out"].locked == "it makes the model's output"
    assert groups["out"].line.endswith(line_of(Flattening.forward, "self.out("))
    assert list(found.found.unreached) == ["spare"]
    assert [group.name for group in found.free_groups] == ["first", "hidden"]


@pytest.fixture(scope="module")
def residual() -> Inspection:
    """A residual network, inspected; the model was found in training mode and is as it was."""
    torch.manual_seed(0)
    workload = make_workload(TinyResNet(width=32).train())
    before = {name: tensor.clone() for name, tensor in workload.model.state_dict().items()}
    found = inspect(workload, target=TARGET, seconds=0.1)
    assert workload.model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in workload.model.state_dict().items())
    return found


def test_inspecting_a_residual_network(residual) -> None:
    """Blocks and widths are found with their shares, the best case is Amdahl's, and the model stays as it was."""
    found = residual
    assert [block.name for block in found.free_blocks] == ["layer1.0", "layer1.1", "layer2.1", "layer2.2"]
    assert len(found.free_groups) == 7
    assert found.found.groups[-1].locked == "it makes the model's output"
    in_blocks = sum(block.time_fraction for block in found.free_blocks)
    assert found.remaining["blocks"] == pytest.approx(1 - in_blocks)
    assert found.remaining["both"] <= min(found.remaining["blocks"], found.remaining["widths"]) < 1
    # Each of the first two blocks: two 3x3 convolutions of 32 channels and the scales and shifts of two norms.
    block = next(block for block in found.free_blocks if block.name == "layer1.0")
    assert block.parameter_fraction == pytest.approx((2 * 9 * 32 * 32 + 4 * 32) / found.parameters)
    assert found.latency_ms > 0
    assert found.refusals == {}


def test_layers_that_are_alike_share_a_line(residual) -> None:
    """Families gather what differs in numbers alone; their shares count once what hangs on two members."""
    families = {family.pattern: family for family in residual.found.families}
    assert families["layer1.*"].members == ("layer1.0", "layer1.1")
    assert families["layer2.*.conv1"].members == ("layer2.0.conv1", "layer2.1.conv1", "layer2.2.conv1")
    assert families["conv1"].members == ("conv1",)
    assert all(family.parameter_fraction <= 1 and family.time_fraction <= 1 for family in families.values())
    assert name_pattern("a.0.b12.3") == "a.*.b12.*"
    assert name_pattern("") == "the model"


def test_untrained_layers_keep_their_own_time() -> None:
    """Layers that hold the same values, as copies at the start of training do, are timed each by itself."""
    layer = nn.Linear(32, 32)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU())
    for _ in range(3):
        twin = nn.Linear(32, 32)
        twin.load_state_dict(layer.state_dict())
        model.append(twin).append(nn.ReLU())
    model.append(nn.Linear(32, 4))
    found = inspect(make_workload(model.eval()), target=TARGET, seconds=0.1)
    assert all(group.time_fraction > 0 for group in found.found.groups)


def test_what_fails_is_told_and_the_rest_goes_on(monkeypatch) -> None:
    """A model that cannot be exported still gets its groups and blocks, by parameters alone."""

    def broken(*_):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(inspection_module, "export_onnx", broken)
    found = inspect(make_workload(TinyResNet(width=32).eval()), target=TARGET)
    assert list(found.refusals) == ["times"]
    assert found.refusals["times"].startswith("RuntimeError: no such operator")
    assert found.latency_ms is None
    assert found.remaining == found.operators == {}
    assert found.free_blocks[0].time_fraction is None
    assert [stage_name(stage) for stage in recommend(found, TARGET).recipe.stages][-1] == "quantize"


def test_lines_of_calls() -> None:
    """A member of a torch container is called where the container is; modules that do not run have no line."""
    model = Flattening().eval()
    lines = call_lines(model, torch.randn(2, 3, 8, 8))
    assert set(lines) == {"first", "second", "hidden", "out"}
    assert lines["first"].endswith(line_of(Flattening.forward, "self.first("))
    resnet = call_lines(TinyResNet().eval(), torch.randn(2, 3, 8, 8))
    assert "workbench/tiny.py" in resnet["layer1.0"]
    assert "residual.py" in resnet["layer1.0.conv1"]


def test_line_of_an_error() -> None:
    """The line of an error is the innermost one of the model's own code, not torch's."""
    with pytest.raises(RuntimeError) as caught:
        Flattening()(torch.randn(1, 3, 4, 4))
    assert error_line(caught.value).endswith(line_of(Flattening.forward, "x.view"))
    assert error_line(ValueError("never raised")) is None


def test_paths_are_short() -> None:
    """Paths in reasons begin where we are or where packages are installed."""
    text = f"operator aten.x at {Path.cwd() / 'mine.py'}:3 (see {Path(torch.__file__).parent / 'nn' / 'init.py'}:9)"
    assert shortened(text) == f"operator aten.x at mine.py:3 (see {Path('torch') / 'nn' / 'init.py'}:9)"


def group(name: str, time: float | None, *, kind: str = "channels", locked: str | None = None) -> PrunableGroup:
    return PrunableGroup(
        name=name, kind=kind, width=64, layers=(name,), time_fraction=time, parameter_fraction=0.2, locked=locked
    )


def block(name: str) -> DroppableBlock:
    return DroppableBlock(name=name, group="Block 8x8", time_fraction=0.2, parameter_fraction=0.2)


def findings(*, groups=(), blocks=(), remaining=None, operators=None) -> Inspection:
    return Inspection(
        workload="mine",
        model="Net",
        parameters=1000,
        target=TARGET,
        latency_ms=1.0,
        input_shapes=((3, 32, 32), ()),
        found=Findings(groups=tuple(groups), blocks=tuple(blocks), families=(), unreached={}),
        remaining={"blocks": 1.0, "widths": 1.0, "both": 1.0, **(remaining or {})},
        operators={"Conv": 0.9, "Relu": 0.1} if operators is None else operators,
        refusals={},
    )


THREE = [block("a"), block("b"), block("c")]


@pytest.mark.parametrize(
    ("found", "stages", "says"),
    [
        (findings(blocks=THREE, remaining={"blocks": 0.4}), ["drop_blocks", "distill", "quantize"],
         "3 blocks hold 60% of the time, and a dropped block saves all of its time."),
        (findings(groups=[group("a", 0.8)], remaining={"widths": 0.2}), ["prune_channels", "distill", "quantize"],
         "1 group of channels decides 80% of the time"),
        (findings(blocks=THREE[:1], remaining={"blocks": 0.4}), ["quantize"],
         "operators that take 90% of the time"),
        (findings(blocks=THREE, remaining={"blocks": 0.95}), ["quantize"], "8-bit kernels"),
        (findings(operators={"GRU": 0.8, "Gemm": 0.1}), ["quantize"], "no faster 8-bit kernel for GRU"),
    ],
)  # fmt: skip
def test_recommended_stages(found, stages, says) -> None:
    """What decides enough of the time goes, training follows, 8 bits come last; the reasons stand in the text."""
    advice = recommend(found, TARGET)
    assert [stage_name(stage) for stage in advice.recipe.stages] == stages
    assert says in advice.text
    assert Recipe.loads(advice.text) == advice.recipe


def test_one_decision_where_both_pay() -> None:
    """Blocks and widths that both decide much are left to one stage."""
    both = findings(blocks=THREE, groups=[group("a", 0.7)], remaining={"blocks": 0.4, "widths": 0.3, "both": 0.2})
    first = stage_name(recommend(both, TARGET).recipe.stages[0])
    assert first == "shrink_structure"


def test_the_goal_is_within_reach() -> None:
    """The recipe asks for half of what the widths decide to go, not for more than they have."""
    advice = recommend(findings(groups=[group("a", 0.4)], remaining={"widths": 0.6}), TARGET)
    assert advice.recipe.stages[0].target == Latency(fraction=0.8)


def test_nothing_to_recommend() -> None:
    """A model without structure to take or operators to quantize gets no recipe."""
    assert recommend(findings(operators={"Relu": 1.0}), TARGET) is None


def test_cpus_without_8_bit_instructions() -> None:
    """Where the CPU has no 8-bit instructions, the recipe promises a smaller file alone."""
    advice = recommend(findings(), Target(isa=Isa.GENERIC))
    assert "this CPU has no instructions that make it faster" in advice.text


def test_printing() -> None:
    """The terminal shows free and locked, the lines, the best case and the recipe; names are not read as markup."""
    found = inspect(make_workload(Flattening().eval()), target=TARGET, seconds=0.1)
    found = replace(found, workload="mine[bold]")
    console = Console(width=160)
    with console.capture() as captured:
        print_inspection(found, recommend(found, TARGET), console)
        print_inspection(findings(operators={"Relu": 1.0}), None, console)
    text = captured.get()
    assert "Flattening of mine[bold]" in text
    assert "1 ms a call (batch 1 of 3x32x32 and 1, 1 thread" in text
    assert "Blocks that can be dropped: none" in text
    assert line_of(Flattening.forward, "x.view") in text
    assert "danger: it (" in text
    assert "is reached by no example" in text
    assert "every width that can shrink" in text
    assert "- prune_channels" in text
    assert "no structure can go, all of the time remains" in text
    assert "nothing here can be made smaller" in text
