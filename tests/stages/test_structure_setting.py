"""Structure that somebody chose: these widths, these blocks, and a reason where that cannot be."""

import pytest
import torch

from compressor.errors import StageError
from compressor.kept_state import private_copy
from compressor.pruning.ranking.criteria import L1
from compressor.recipe.recipe import Recipe
from compressor.stage import Context
from compressor.stages import SetStructure


def made(workload, **settings):
    context = Context(progress=False)
    model = SetStructure(**settings).apply(private_copy(workload.model), workload, context)
    return model, context


def test_widths_are_as_they_were_chosen(tiny_workload):
    """16 channels become 5, whatever kernels like, and the smallest by the criterion go."""
    whole = tiny_workload.model.layer1[0].conv1.weight
    model, _ = made(tiny_workload, widths=("layer1.0.conv1=5",), criterion=L1())
    norms = whole.abs().flatten(1).sum(dim=1)
    kept = norms.topk(5).indices.sort().values
    assert torch.equal(model.layer1[0].conv1.weight, whole[kept])
    assert model.conv1.out_channels == 16


def test_a_block_goes_and_its_widths_with_it(tiny_workload):
    """A width inside of a block that goes is no matter."""
    model, context = made(tiny_workload, widths=("layer1.1.conv1=4",), drop=("layer1.1",))
    assert sum(parameter.numel() for parameter in model.layer1[1].parameters()) == 0
    assert [entry["kind"] for entry in context.plan] == ["identity"]
    assert context.details["dropped_in_order"] == ["layer1.1"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"widths": ("layer1.0.conv2x=4",)}, "no group of coupled layers 'layer1.0.conv2x'"),
        ({"widths": ("conv=4",)}, "did you mean 'conv1'"),
        ({"widths": ("linear=2",)}, "'linear' has to keep its 4"),
        ({"widths": ("conv1=17",)}, "has 16 channels, and 17 are asked for"),
        ({"widths": ("conv1=16",)}, "these widths already"),
        ({"drop": ("layer2.0",)}, "no block 'layer2.0' that could go"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tiny_workload, settings, told):
    """Unknown names with the nearest one, locks with their reason, and nothing to do."""
    with pytest.raises(StageError, match=told):
        made(tiny_workload, **settings)


@pytest.mark.parametrize(
    "settings",
    [{}, {"widths": ("conv1",)}, {"widths": ("conv1=0",)}, {"widths": ("conv1=-3",)}, {"widths": ("=3",)},
     {"widths": ("conv1=3", "conv1=4")}, {"drop": ("a", "a")}],
)  # fmt: skip
def test_texts_that_are_no_widths_are_refused_at_once(settings):
    """Before there is any model."""
    with pytest.raises(ValueError, match=r"width|twice|empty"):
        SetStructure(**settings)


def test_a_recipe_holds_it():
    """As YAML and back."""
    stage = SetStructure(widths=("layer1.0.conv1=5",), drop=("layer2.1",))
    recipe = Recipe(stages=(stage,))
    assert Recipe.loads(recipe.dump()).stages == (stage,)
