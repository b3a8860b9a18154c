"""Stages of several kinds in a row: what each promised holds in the file at the end, and the plan rebuilds it."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from compressor import Pipeline, load_checkpoint
from compressor.low_rank.settings import Channelwise, Rank, WeightError
from compressor.stages import (
    ClusterWeights,
    FactorizeLayers,
    FineTune,
    PruneChannels,
    QuantizationAwareTraining,
    SemiStructured,
    SparsifyWeights,
)
from workbench.tiny import TinyResNet, make_workload

IGNORED = ("conv1", "linear", "layer2.0")


def ran(stages, tmp_path):
    """The report of the stages, the model that its checkpoint rebuilds, and the float model's own outputs."""
    workload = make_workload(TinyResNet().eval(), train=64, test=32)
    result = Pipeline(stages).run(workload, out=tmp_path, progress=False)
    assert [step.kept for step in result.report.steps] == [True] * (len(stages) + 1)
    return result, load_checkpoint(tmp_path, TinyResNet)


def groups_of_four(weight: np.ndarray) -> np.ndarray:
    """How many of every four neighbours along the inputs are zero."""
    moved = np.moveaxis(weight, 1, -1)
    return (moved.reshape(-1, 4) == 0).sum(axis=1)


def low_rank(rank: int) -> FactorizeLayers:
    return FactorizeLayers(target=Rank(rank), kernels=Channelwise(), near=WeightError(), ignore=IGNORED)


@pytest.mark.slow
def test_thinner_layers_become_two_of_four_and_integers(tmp_path) -> None:
    """Both halves of a chain have two zeros of every four inputs, in the checkpoint and in the integers that ship."""
    pattern = SparsifyWeights(pattern=SemiStructured(n=2, m=4), ignore=("conv1",))
    _, model = ran([low_rank(8), pattern, FineTune(epochs=1), QuantizationAwareTraining(epochs=1)], tmp_path)
    chains = [module for module in model.modules() if isinstance(module, nn.Sequential) and len(module) == 2
              and all(isinstance(part, nn.Conv2d) for part in module)]  # fmt: skip
    assert len(chains) >= 4
    for part in (part for chain in chains for part in chain):
        assert (groups_of_four(part.weight.detach().numpy()) >= 2).all()
    file = onnx.load_from_string((tmp_path / "model.onnx").read_bytes())
    integers = [
        array
        for tensor in file.graph.initializer
        if (array := onnx.numpy_helper.to_array(tensor)).dtype == np.int8
        and array.ndim == 4
        and array.shape[1] % 4 == 0
    ]
    assert len(integers) >= 2 * len(chains)
    assert all((groups_of_four(array) >= 2).all() for array in integers)


@pytest.mark.slow
def test_what_was_factorised_can_be_factorised_again(tmp_path) -> None:
    """Rank 8, then 4: the parts of a chain become chains, and the file computes what the rebuilt model does."""
    result, model = ran([low_rank(8), low_rank(4), FineTune(epochs=1)], tmp_path)
    first, second = ({layer["layer"] for layer in step.details["factorized"]} for step in result.report.steps[1:3])
    assert "layer2.1.conv1" in first
    assert second
    assert all(any(name.startswith(f"{outer}.") for outer in first) for name in second)
    workload = make_workload(TinyResNet().eval(), train=64, test=32)
    images = workload.example_inputs
    from compressor.runtime import open_session

    session = open_session((tmp_path / "model.onnx").read_bytes())
    got = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(got, model.eval()(images).numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_shared_values_survive_narrower_layers(tmp_path) -> None:
    """Eight values a layer, a third of the channels gone, a training: eight are left, and the layers are narrower."""
    stages = [ClusterWeights(clusters=8), PruneChannels(remove=0.3, align=1), FineTune(epochs=1)]
    result, model = ran(stages, tmp_path)
    counts = {name: len(torch.unique(own)) for name, own in model.named_parameters() if own.ndim > 1}
    assert max(counts.values()) <= 8
    assert sum(own.numel() for own in model.parameters()) < sum(own.numel() for own in TinyResNet().parameters())
    assert not [text for text in result.report.warnings if "made equal" in text]
