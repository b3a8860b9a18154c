"""Weights that layers compute: folded to what they are worth, exactly, and without harm to other copies."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from compressor.batches import Batches
from compressor.errors import StageError
from compressor.files.export import export_onnx
from compressor.kept_state import private_copy
from compressor.pruning.choice.targets import Parameters
from compressor.pruning.penalties import GroupLasso, L1Penalty
from compressor.pruning.ranking.criteria import L1
from compressor.stage import Context
from compressor.stages.channel_pruning import PruneChannels
from compressor.stages.fine_tuning import FineTune
from compressor.stages.layer_dropping import DropBlocks
from compressor.stages.sparse_training import SparseTraining
from compressor.stages.structure_shrinking import ShrinkStructure
from compressor.stages.zero_removal import RemoveZeroChannels
from compressor.structure.blocks import find_blocks
from compressor.structure.checkpoint import load_checkpoint, save_checkpoint
from compressor.structure.graph import trace_structure
from compressor.structure.parametrizations import computed_weights, fold_weights_
from compressor.structure.plan import apply_plan_
from compressor.structure.preparing.preparation import fold_, prepare_
from compressor.testing import check_stage
from compressor.workload import Workload
from workbench.same_data import same_data

Wrap = Callable[[nn.Module], nn.Module]


class Positive(nn.Module):
    """A parametrization without an inverse: the weight is never negative."""

    def forward(self, weight: Tensor) -> Tensor:
        return F.softplus(weight)


class LowRank(nn.Module):
    """The weight plus a trained product of two thin matrices, one of which is computed itself."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        self.left = nn.Parameter(torch.randn(rows, 2) * 0.1)
        self.right = parametrizations.weight_norm(nn.Linear(columns, 2, bias=False))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.left @ self.right.weight).reshape(weight.shape)


class Drawn(nn.Module):
    """A parametrization that gives something else at every look."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + torch.randn_like(weight)


def _old(function: Any) -> Wrap:
    def wrap(layer: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch wants its newer function; models have the older one
            return function(layer)

    return wrap


def _parametrized(make: Callable[[Tensor], nn.Module]) -> Wrap:
    return lambda layer: parametrize.register_parametrization(layer, "weight", make(layer.weight))


def _chained(layer: nn.Module) -> nn.Module:
    return _parametrized(lambda _: Positive())(parametrizations.spectral_norm(layer))


WRAPS: dict[str, Wrap] = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm_of_inputs": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "weight_norm_of_all": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old_weight_norm": _old(nn.utils.weight_norm),
    "old_spectral_norm": _old(nn.utils.spectral_norm),
    "mask": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "masks_in_a_row": lambda layer: prune.random_unstructured(
        prune.ln_structured(layer, "weight", 1, 2, 0), "weight", 2
    ),
    "no_inverse": _parametrized(lambda _: Positive()),
    "nested": _parametrized(LowRank),
    "chained": _chained,
}


class Net(nn.Module):
    """Convolutions over time with computed weights, the last two around a shortcut."""

    def __init__(self, wrap: Wrap) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [wrap(nn.Conv1d(width, 8, 3, padding=1)) for width in (3, 8, 8)],
        )
        self.head = wrap(nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.convs[0](x))
        x = x + self.convs[2](F.relu(self.convs[1](x)))
        return self.head(x[:, :, -1])


def workload_of(model: nn.Module, *shape: int) -> Workload:
    data = Batches((torch.randn(24, *shape), torch.arange(24) % 5), batch_size=8)
    return same_data(model, data, torch.randn(2, *shape))


def _masked(model: nn.Module, plan: list[dict[str, Any]]) -> nn.Module:
    """A copy of `model` with plain weights and with zeros in place of what `plan` takes out."""
    twin = private_copy(model)
    fold_weights_(twin, computed_weights(twin))
    tensors = dict(twin.named_parameters())
    with torch.no_grad():
        for entry in plan:
            for name, dims in entry["tensors"].items() if entry["kind"] == "slice" else ():
                for dim, kept in dims.items():
                    gone = torch.ones(tensors[name].shape[int(dim)], dtype=torch.bool)
                    gone[kept] = False
                    tensors[name].index_fill_(int(dim), gone.nonzero().flatten(), 0)
    return twin


@pytest.mark.parametrize("kind", WRAPS)
def test_what_is_left_computes_what_the_masked_original_computes(kind: str, tmp_path: Path) -> None:
    """Computed weights are narrowed as the plain weights that they are worth; the plan rebuilds it from the class."""
    model = Net(WRAPS[kind]).double().eval()
    x = torch.randn(4, 3, 12, dtype=torch.float64)
    before = model(x).detach()
    workload = workload_of(model.float(), 3, 12)
    context = Context(progress=False, details={}, plan=[])
    small = PruneChannels(remove=0.4, align=1, criterion=L1()).apply(private_copy(model), workload, context)
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())
    masked = _masked(model, context.plan)
    torch.testing.assert_close(small.double()(x), masked.double()(x))
    folded = {(entry["layer"], entry["tensor"]) for entry in context.details["parametrizations_folded"]}
    assert folded == {(name, "weight") for name in ("convs.0", "convs.1", "convs.2", "head")}
    # The original still computes its weights, and what it computed.
    assert set(computed_weights(model)) == {"convs.0", "convs.1", "convs.2", "head"}
    torch.testing.assert_close(model.double()(x), before, rtol=1e-4, atol=1e-4)
    save_checkpoint(tmp_path, small, context.plan)
    fresh = load_checkpoint(tmp_path, lambda: Net(WRAPS[kind]).double())
    torch.testing.assert_close(fresh(x), small(x), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["weight_norm", "old_spectral_norm", "nested"])
@pytest.mark.parametrize(
    "stage",
    [
        PruneChannels(remove=0.4, align=1),
        ShrinkStructure(target=Parameters(0.6), align=1, rounds=1, batches=1),
        SparseTraining(penalty=GroupLasso(strength=0.1), epochs=1),
        SparseTraining(penalty=L1Penalty(strength=0.1), epochs=1),
    ],
    ids=lambda stage: type(getattr(stage, "penalty", stage)).__name__,
)
def test_stages_keep_their_contract(kind: str, stage: Any) -> None:
    """Stages that change structure, or look for it, work on computed weights: same bits twice, a plan, an export."""
    model = Net(WRAPS[kind]).eval()
    small = check_stage(stage, workload_of(model, 3, 12))
    assert computed_weights(small) == {}
    optimizer = torch.optim.SGD(small.train().parameters(), lr=0.1)
    small(torch.randn(4, 3, 12)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    optimizer.step()


@pytest.mark.parametrize("kind", ["orthogonal", "old_weight_norm", "nested"])
def test_what_stays_computed_is_plain_in_the_file(kind: str) -> None:
    """Training keeps a parametrization, and the file holds the weight that it gives: ONNX may lack what computes it."""
    model = Net(WRAPS[kind]).eval()
    tuned = check_stage(FineTune(epochs=1), workload_of(model, 3, 12))
    assert set(computed_weights(tuned)) == {"convs.0", "convs.1", "convs.2", "head"}
    file = onnx.load_from_string(export_onnx(tuned, workload_of(tuned, 3, 12)).onnx_bytes)
    assert {node.op_type for node in file.graph.node} <= {
        "Conv",
        "Relu",
        "Add",
        "Gather",
        "Gemm",
        "MatMul",
        "Slice",
        "Squeeze",
    }


def test_zeros_that_a_penalty_left_are_removed() -> None:
    """A channel whose weight norm is zero goes like any other that is zero."""
    model = Net(parametrizations.weight_norm).eval()
    with torch.no_grad():
        model.convs[1].parametrizations.weight.original0[:3] = 0
        model.convs[1].bias[:3] = 0
    context = Context(progress=False, details={}, plan=[])
    small = RemoveZeroChannels(align=1).apply(private_copy(model), workload_of(model, 3, 12), context)
    x = torch.randn(4, 3, 12)
    assert small.convs[1].weight.shape[0] == 5
    torch.testing.assert_close(small(x), model(x))


def test_ignored_layers_stay_computed() -> None:
    """What may not be narrowed need not be folded: it keeps its norm in the training that follows."""
    model = Net(parametrizations.spectral_norm).eval()
    context = Context(progress=False, details={}, plan=[])
    stage = PruneChannels(remove=0.4, align=1, ignore=("convs.0", "head"))
    small = stage.apply(private_copy(model), workload_of(model, 3, 12), context)
    assert set(computed_weights(small)) == {"convs.0", "head"}
    assert small.convs[1].weight.shape[0] < 8


def test_what_is_drawn_anew_is_locked_with_the_reason() -> None:
    """A weight that is another one at every look has no value to fold: its layer stays, and the report says why."""
    model = Net(parametrizations.weight_norm).eval()
    parametrize.register_parametrization(model.convs[0], "bias", Drawn())
    x = torch.randn(2, 3, 12)
    prepare_(model, x)
    assert set(computed_weights(model)) == {"convs.0"}
    locked = [group.locked or "" for group in trace_structure(model, x).groups]
    assert any("bias (by Drawn), which cannot be made plain" in reason for reason in locked)


class ReadsItsParts(Net):
    """A model whose own program reads the tensors that its weight is computed from."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.convs[0].parametrizations.weight.original0.mean()


def test_what_the_program_reads_stays_computed() -> None:
    """Where the model's own code needs the tensors behind a weight, that layer is locked and the others go."""
    model = ReadsItsParts(parametrizations.weight_norm).eval()
    context = Context(progress=False, details={}, plan=[])
    small = PruneChannels(remove=0.4, align=1).apply(private_copy(model), workload_of(model, 3, 12), context)
    assert set(computed_weights(small)) == {"convs.0"}
    assert small.convs[1].weight.shape[0] < 8


def test_copies_share_a_class_and_are_folded_alone() -> None:
    """Torch keeps a parametrization in the class that copies share: folding one leaves the others as they are."""
    model = Net(parametrizations.weight_norm).eval()
    x = torch.randn(2, 3, 12)
    twin = private_copy(model)
    fold_weights_(twin, computed_weights(twin))
    torch.testing.assert_close(twin(x), model(x))
    assert type(twin.convs[0]) is nn.Conv1d
    assert model.convs[0].weight.shape == (8, 3, 3)


def test_weights_of_one_tensor_and_one_computation_stay_one() -> None:
    """A table that is tied to the last layer, both normed by the same parametrization, is one parameter afterwards."""
    model = nn.ModuleDict({"table": nn.Embedding(7, 4), "head": nn.Linear(4, 7, bias=False)})
    model["head"].weight = model["table"].weight
    norm = Positive()
    for layer in model.values():
        parametrize.register_parametrization(layer, "weight", norm, unsafe=True)
    model["table"].parametrizations.weight.original.requires_grad_(False)
    fold_weights_(model, computed_weights(model))
    assert model["head"].weight is model["table"].weight
    assert not model["head"].weight.requires_grad


def test_a_shared_layer_is_folded_once() -> None:
    """One module under two names computes one weight."""
    layer = parametrizations.weight_norm(nn.Linear(4, 4))
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(4, 5)).eval()
    x = torch.randn(2, 4)
    before = model(x)
    assert [entry["kind"] for entry in fold_(model, x)] == ["fold"]
    assert model[0] is model[2]
    torch.testing.assert_close(model(x), before)


def test_a_computed_buffer_stays_a_buffer() -> None:
    """A parametrized buffer is no parameter afterwards."""
    layer = nn.BatchNorm1d(4)
    parametrize.register_parametrization(layer, "running_var", Positive())
    fold_weights_(layer, computed_weights(layer))
    assert "running_var" in dict(layer.named_buffers())
    torch.testing.assert_close(layer.running_var, F.softplus(torch.ones(4)))


def test_a_plan_for_computed_weights_wants_them() -> None:
    """A plan that folds is refused, by name, where the model computes other weights than it says, or none."""
    model = Net(parametrizations.weight_norm)
    plain = Net(lambda layer: layer)
    with pytest.raises(ValueError, match=r"'convs\.0'.*give the model that the plan was made for"):
        apply_plan_(plain, [{"kind": "fold", "tensors": {"convs.0": {"weight": "_WeightNorm"}}}])
    with pytest.raises(ValueError, match="'nowhere', which Net lacks"):
        apply_plan_(model, [{"kind": "fold", "tensors": {"nowhere": {"weight": "_WeightNorm"}}}])


class Stack(nn.Module):
    """A stack of two recurrent layers, weight-normed in each."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.GRU(6, 6, 2, batch_first=True), nn.Linear(6, 5)
        for layer in (0, 1):
            parametrizations.weight_norm(self.recurrent, f"weight_hh_l{layer}")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


def test_recurrent_layers_with_computed_weights_are_narrowed_and_dropped() -> None:
    """Units of weight-normed GRUs go, and whole layers of such a stack."""
    model = Stack().eval()
    workload, x = workload_of(model, 4, 6), torch.randn(3, 4, 6)
    context = Context(progress=False, details={}, plan=[])
    small = PruneChannels(remove=0.4, align=1).apply(private_copy(model), workload, context).eval()
    assert small.recurrent.hidden_size < 6
    torch.testing.assert_close(small(x), _masked(model, context.plan)(x))
    context = Context(progress=False, details={}, plan=[])
    dropped = DropBlocks(remove=0.5, batches=1).apply(private_copy(model), workload, context).eval()
    assert dropped.recurrent.num_layers == 1
    rebuilt = apply_plan_(Stack(), context.plan)
    rebuilt.load_state_dict(dropped.state_dict())
    torch.testing.assert_close(rebuilt.eval()(x), dropped(x))


def test_a_single_layer_is_no_block_because_its_weight_is_computed() -> None:
    """The tensors behind a weight are no layers: a lone normed layer is not worth a shortcut, two are."""
    lone = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 5)).eval()
    with pytest.raises(StageError, match="no droppable block"):
        find_blocks(lone, torch.randn(2, 4))
    pair = nn.Sequential(*(parametrizations.weight_norm(nn.Linear(4, 4)) for _ in range(2)))
    assert list(find_blocks(nn.Sequential(pair, nn.Linear(4, 5)).eval(), torch.randn(2, 4))) == ["0"]
