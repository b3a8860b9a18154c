"""Patterns of names that match nothing are refused before any work, whatever the stage and the setting."""

import copy

import pytest
import torch
from torch import nn

from compressor.errors import StageError
from compressor.stage import Context
from compressor.stages import (
    ClusterWeights,
    DropBlocks,
    FactorizeLayers,
    Macs,
    MergeSimilar,
    Parameters,
    PruneChannels,
    Rank,
    RemoveZeroChannels,
    ShrinkStructure,
    SparseTraining,
    SparsifyWeights,
)
from compressor.structure.preparing.matching import check_modules_match, matching_glob
from workbench.tiny import TinyResNet, make_workload

STAGES = {
    "ignore": (
        lambda globs: PruneChannels(remove=0.5, ignore=globs),
        lambda globs: PruneChannels(target=Macs(0.5), ignore=globs),
        lambda globs: ShrinkStructure(target=Parameters(0.5), ignore=globs),
        lambda globs: MergeSimilar(remove=0.25, ignore=globs),
        lambda globs: RemoveZeroChannels(ignore=globs),
        lambda globs: FactorizeLayers(target=Rank(4), ignore=globs),
        lambda globs: SparsifyWeights(sparsity=0.5, ignore=globs),
        lambda globs: ClusterWeights(clusters=4, ignore=globs),
    ),
    "layers": (
        lambda globs: SparsifyWeights(sparsity=0.5, layers=globs),
        lambda globs: ClusterWeights(clusters=4, layers=globs),
        lambda globs: SparseTraining(layers=globs),
    ),
    "blocks": (
        lambda globs: DropBlocks(remove=0.5, blocks=globs),
        lambda globs: ShrinkStructure(target=Parameters(0.5), blocks=globs),
    ),
}
CASES = [(setting, make) for setting, makers in STAGES.items() for make in makers]
NAMES = [f"{setting}-{type(make(('x',))).__name__}-{number}" for number, (setting, make) in enumerate(CASES)]


@pytest.mark.parametrize(("setting", "make"), CASES, ids=NAMES)
def test_a_misspelled_name_is_refused(setting: str, make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One good name does not hide a misspelled one; nothing ran and no weight has moved."""
    workload = make_workload(TinyResNet(), train=32, test=8)
    model = copy.deepcopy(workload.model)
    calls: list[object] = []
    monkeypatch.setattr(TinyResNet, "forward", lambda *_: calls.append(1))
    with pytest.raises(StageError, match=rf"{setting}: 'linaer' matches no module of TinyResNet; did you mean linear"):
        make(("layer1.*", "linaer")).apply(model, workload, Context(progress=False))
    assert calls == []
    for name, value in model.state_dict().items():
        assert torch.equal(value, workload.model.state_dict()[name])


def test_a_parameter_is_no_module() -> None:
    """`linear.weight` would protect nothing: the layer is to be named."""
    workload = make_workload(TinyResNet(), train=32, test=8)
    stage = SparsifyWeights(sparsity=0.5, ignore=("linear.weight",))
    with pytest.raises(StageError, match=r"'linear.weight' matches no module .* it names no module .* write 'linear'"):
        stage.apply(copy.deepcopy(workload.model), workload, Context(progress=False))


def test_what_an_earlier_stage_took_out_may_be_named() -> None:
    """A block that is gone is still a name of the model that the user wrote."""
    workload = make_workload(TinyResNet(), train=32, test=8)
    model = copy.deepcopy(workload.model)
    model.layer1[1] = nn.Identity()
    SparsifyWeights(sparsity=0.5, ignore=("layer1.1.conv1",)).apply(model, workload, Context(progress=False))
    assert bool((model.linear.weight == 0).any())


def test_a_single_layer_has_no_names() -> None:
    """A model that is one layer is matched by what matches everything, and by nothing else."""
    check_modules_match("layers", ("*", "**"), nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(StageError, match="'0' matches no module of Linear; it has none"):
        check_modules_match("layers", ("0",), nn.Linear(2, 2), nn.Linear(2, 2))


def test_names_that_stages_make() -> None:
    """Layers of recurrent stacks and the projection of an attention may be named, though they are no modules yet."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(4, 4, num_layers=2)
            self.attention = nn.MultiheadAttention(4, 2)

    check_modules_match("ignore", ("rnn.layers.1", "attention.in_proj", "attention"), Both(), Both())
    for wrong in ("rnn.layers.2", "attention.in_prj"):
        with pytest.raises(StageError, match=wrong):
            check_modules_match("ignore", (wrong,), Both(), Both())


@pytest.mark.parametrize(
    "stage", [SparsifyWeights(sparsity=0.5, layers=("layer1",)), ClusterWeights(clusters=4, layers=("layer1",))]
)
def test_a_module_stands_for_all_that_is_in_it(stage) -> None:
    """`layers=("layer1",)` reaches the convolutions inside, as `ignore` does, and nothing else."""
    workload = make_workload(TinyResNet(), train=32, test=8)
    model = stage.apply(copy.deepcopy(workload.model), workload, Context(progress=False))
    before, after = workload.model.state_dict(), model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("layer1.") and "conv" in name}


def test_the_glob_that_matches_is_told() -> None:
    """A name, a pattern, and a module that it lies in; a beginning of a name is not one."""
    assert matching_glob("layer1.0.conv1", ("layer2", "layer1")) == "layer1"
    assert matching_glob("layer1.0.conv1", ("*.conv1",)) == "*.conv1"
    assert matching_glob("layer10.conv", ("layer1",)) is None
