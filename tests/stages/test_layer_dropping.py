"""Layer dropping: which blocks are found, which go first, and that the rest is the network without them."""

import copy
import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.batches import Batches
from compressor.errors import StageError
from compressor.pruning.ranking.scope import Global
from compressor.stage import Context
from compressor.stages.layer_dropping import (
    DropBlocks,
    Influence,
    LossIncrease,
    block_influence,
    drop_count,
    loss_increases,
)
from compressor.structure.blocks import find_blocks
from compressor.structure.checkpoint import load_checkpoint, save_checkpoint
from compressor.structure.pass_through import PassThrough
from compressor.structure.plan import apply_plan_
from compressor.structure.trials import evaluating
from compressor.workload import Workload, predict
from workbench.same_data import same_data
from workbench.tiny import Block, TinyResNet


def drop(stage: DropBlocks, workload: Workload) -> tuple[nn.Module, Context]:
    context = Context(progress=False)
    return stage.apply(copy.deepcopy(workload.model), workload, context), context


def gone(context: Context) -> set[str]:
    return {name for entry in context.plan for name in entry["modules"]}


class Inverted(nn.Module):
    """MobileNet's block: the layers inside keep their shape, too, but only the whole may be skipped."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU()),
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Stack(nn.Module):
    """Residual linear blocks of given strengths, then a head; block i adds `strengths[i]` to both features."""

    class Step(nn.Module):
        def __init__(self, strength: float) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
            nn.init.zeros_(self.first.weight)
            nn.init.zeros_(self.second.weight)
            with torch.no_grad():
                self.second.bias.copy_(torch.tensor([strength, 0.0]))

        def forward(self, x: Tensor, scale: float) -> tuple[Tensor]:
            return (x + scale * self.second(self.first(x)),)

    def __init__(self, *strengths: float) -> None:
        super().__init__()
        self.steps = nn.ModuleList(self.Step(strength) for strength in strengths)
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            (x,) = step(x, 1.0)
        return self.head(x)


def stack_workload(*strengths: float) -> Workload:
    data = Batches((torch.tensor([[0.0, 1.0], [0.0, 2.0]]), torch.tensor([0, 1])), batch_size=2)
    model = Stack(*strengths).eval()
    return same_data(model, data, torch.tensor([[0.0, 1.0], [0.0, 2.0]]))


def test_influence_by_hand() -> None:
    """The same direction has no influence, a right angle 1, the opposite 2; (3, 4) to (4, 3) is 1 - 24/25."""
    inputs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [3.0, 4.0]])
    outputs = torch.tensor([[5.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [4.0, 3.0]])
    assert block_influence(inputs, outputs).tolist() == pytest.approx([0.0, 1.0, 2.0, 0.04])


def test_counts_are_rounded_half_up() -> None:
    """Three quarters of 9, 8 and 8 blocks are 7, 6 and 6; half of one block is that block."""
    assert [drop_count(count, 0.75) for count in (9, 8, 8)] == [7, 6, 6]
    assert drop_count(1, 0.5) == 1
    assert drop_count(4, 0.1) == 0


def test_blocks_of_a_residual_network(tiny_cnn: type[TinyResNet]) -> None:
    """Exactly the blocks without a projection can go; their layers and the stages around them are no blocks."""
    found = find_blocks(tiny_cnn().eval(), torch.randn(2, 3, 8, 8))
    assert {name: block.group for name, block in found.items()} == {
        "layer1.0": "BasicBlock 16x8x8",
        "layer1.1": "BasicBlock 16x8x8",
        "layer2.1": "BasicBlock 32x4x4",
        "layer2.2": "BasicBlock 32x4x4",
    }


def test_blocks_of_a_mobile_network() -> None:
    """Of nested shape-preserving modules the one with the skip is the block; a plain chain of layers is one, too."""
    plain = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(Inverted(4), Inverted(4)), plain, nn.Conv2d(4, 2, 1)).eval()
    assert list(find_blocks(model, torch.randn(2, 3, 8, 8))) == ["1.0", "1.1", "2"]


def test_blocks_of_transformers() -> None:
    """The encoder's layers are the blocks, not the encoder, with or without a last norm; and those of a BERT."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    for norm in (None, nn.LayerNorm(8)):
        encoder = nn.TransformerEncoder(layer, 2, norm=norm, enable_nested_tensor=False)
        model = nn.Sequential(nn.Linear(3, 8), encoder, nn.Linear(8, 2))
        with evaluating(model):
            assert list(find_blocks(model, torch.randn(2, 5, 3))) == ["1.layers.0", "1.layers.1"]
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    bert = transformers.BertForSequenceClassification(config).eval()
    found = find_blocks(bert, {"input_ids": torch.ones(2, 5, dtype=torch.long)})
    assert list(found) == ["bert.encoder.layer.0", "bert.encoder.layer.1"]


@pytest.mark.parametrize("rank_by", [Influence(), LossIncrease()])
def test_half_of_each_group_goes(trained_workload: Workload, rank_by: Influence | LossIncrease) -> None:
    """Of two blocks in each of two groups one goes, and every block's score is told."""
    model, context = drop(DropBlocks(remove=0.5, rank_by=rank_by), trained_workload)
    assert len(gone(context) & {"layer1.0", "layer1.1"}) == 1
    assert len(gone(context) & {"layer2.1", "layer2.2"}) == 1
    assert sum(isinstance(module, Block) for module in model.modules()) == 3
    assert sum(isinstance(module, PassThrough) for module in model.modules()) == 2
    blocks = context.details["blocks"]
    assert {entry["block"] for entry in blocks if not entry["kept"]} == gone(context)
    assert all(isinstance(entry["score"], float) for entry in blocks)


def test_the_block_that_does_least_goes_first() -> None:
    """Of blocks that add 3, 0.1 and 1 to the first feature, the middle one goes, then the last."""
    workload = stack_workload(3.0, 0.1, 1.0)
    _, context = drop(DropBlocks(remove=0.34, rank_by=Influence()), workload)
    assert gone(context) == {"steps.1"}
    _, context = drop(DropBlocks(remove=0.67, rank_by=Influence()), workload)
    assert context.details["dropped_in_order"] == ["steps.1", "steps.2"]


def test_loss_is_measured_without_the_block() -> None:
    """The block whose absence costs the loss nothing goes, whatever its size."""
    workload = stack_workload(2.0, 2.0)
    with torch.no_grad():
        workload.model.steps[1].second.bias.copy_(torch.tensor([0.0, 5.0]))
        workload.model.head.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))  # blind for the second feature
        workload.model.head.bias.zero_()
        workload.calibration.samples[1].zero_()  # both samples are of class 0, which the first block speaks for
    _, context = drop(DropBlocks(remove=0.5, rank_by=LossIncrease()), workload)
    assert gone(context) == {"steps.1"}
    assert {entry["block"]: entry["score"] for entry in context.details["blocks"]}["steps.1"] == 0.0


def test_loss_increases_are_those_of_each_block_alone() -> None:
    """Without the block that decides, the loss goes from log(1 + exp(-4)) to log 2; without an idle one, nowhere."""
    workload = stack_workload(2.0, 0.0)
    with torch.no_grad():
        workload.model.head.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        workload.model.head.bias.zero_()
    data = [(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))]
    increases = loss_increases(workload.model, find_blocks(workload.model, data[0][0]), data, F.cross_entropy)
    assert increases["steps.0"] == pytest.approx(math.log(2) - math.log1p(math.exp(-4)), abs=1e-6)
    assert increases["steps.1"] == 0.0


def test_what_is_left_is_the_network_without_the_blocks() -> None:
    """The sum of the kept strengths reaches the head: 0 + 3 + 1 after the block of 0.1 is gone; tuples are kept."""
    workload = stack_workload(3.0, 0.1, 1.0)
    model, context = drop(DropBlocks(remove=0.34, rank_by=Influence()), workload)
    inputs = torch.tensor([[0.0, 1.0]])
    assert torch.allclose(model(inputs), model.head(torch.tensor([[4.0, 1.0]])))
    assert context.plan[0]["as_tuple"] is True


def test_plan_rebuilds_the_network_and_loads(trained_workload: Workload, tmp_path) -> None:
    """The plan, through JSON, and the saved weights give the same bits on a fresh model."""
    model, context = drop(DropBlocks(remove=0.5), trained_workload)
    inputs = trained_workload.example_inputs
    rebuilt = apply_plan_(copy.deepcopy(trained_workload.model), json.loads(json.dumps(context.plan)))
    assert torch.equal(predict(rebuilt, inputs), predict(model, inputs))
    save_checkpoint(tmp_path, model, context.plan)
    assert torch.equal(predict(load_checkpoint(tmp_path, TinyResNet), inputs), predict(model.eval(), inputs))


def test_same_seed_same_bits_and_the_reference_untouched(trained_workload: Workload) -> None:
    """Two runs decide alike; the reference, modes and running statistics are as they were."""
    before = copy.deepcopy(trained_workload.model.state_dict())
    model = copy.deepcopy(trained_workload.model)
    model.layer1.train()
    context = Context(progress=False)
    DropBlocks(remove=0.5).apply(model, trained_workload, context)
    assert model.layer1.training
    assert not model.layer2.training
    _, again = drop(DropBlocks(remove=0.5), trained_workload)
    assert context.plan == again.plan
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in trained_workload.model.state_dict().items())


def test_global_scope_ranks_all_blocks_together(trained_workload: Workload) -> None:
    """A quarter of four blocks is one block, the least important of all."""
    _, context = drop(DropBlocks(remove=0.25, scope=Global(), rank_by=Influence()), trained_workload)
    assert len(gone(context)) == 1
    scores = {entry["block"]: entry["score"] for entry in context.details["blocks"]}
    assert gone(context) == {context.details["dropped_in_order"][0]}
    assert set(scores) == {"layer1.0", "layer1.1", "layer2.1", "layer2.2"}


def test_globs_limit_what_may_go(trained_workload: Workload) -> None:
    """Only blocks whose names match are candidates."""
    _, context = drop(DropBlocks(remove=0.5, blocks=("layer2.*",)), trained_workload)
    assert len(gone(context)) == 1
    assert gone(context) < {"layer2.1", "layer2.2"}


class Picky(nn.Module):
    """Its first block's class is asked for by the code, so that it cannot be replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Block(4, 4), Block(4, 4))
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.body[0].conv1.weight.numel() == 0:
            raise RuntimeError("empty")
        return self.head(self.body(x).mean(dim=(2, 3)))


def test_blocks_the_model_needs_are_locked_with_the_reason() -> None:
    """A block that the code reaches into is kept, and the report has the first line of the error."""
    model = Picky().eval()
    images = torch.randn(4, 4, 4, 4)
    data = Batches((images, torch.arange(4)), batch_size=2)
    workload = same_data(model, data, images[:2])
    _, context = drop(DropBlocks(remove=0.5), workload)
    assert gone(context) == {"body.1"}
    assert context.details["locked"][0]["layer"] == "body.0"
    assert "has no attribute 'conv1'" in context.details["locked"][0]["reason"]


def test_nothing_to_drop_is_an_error_that_says_what_came_close(tiny_workload: Workload) -> None:
    """No match, no block and too small a fraction each raise StageError with what was looked for."""
    with pytest.raises(StageError, match=r"no droppable block among layer2.0: .*layer2.0 maps \(2, 16, 8, 8\) to"):
        drop(DropBlocks(remove=0.5, blocks=("layer2.0",)), tiny_workload)
    with pytest.raises(
        StageError, match=r"remove=0.1 of .*rounds to no block.*; raise remove or use scope=Global\(\)$"
    ):
        drop(DropBlocks(remove=0.1), tiny_workload)
    with pytest.raises(StageError, match=r"remove=0.1 of .*rounds to no block.*; raise remove$"):
        drop(DropBlocks(remove=0.1, scope=Global()), tiny_workload)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"remove": 50}, r"got 50; did you mean 0.5\?"),
        ({"remove": -0.1}, "got -0.1"),
        ({"remove": 0.5, "blocks": "layer1"}, "tuple of globs"),
        ({"remove": 0.5, "batches": 0}, "got 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    """Each wrong value is refused with what was wanted and got."""
    with pytest.raises(ValueError, match=message):
        DropBlocks(**settings)
