"""Networks of the zoo in chains compute what they compute with the chains' products as their weights."""

import copy
import json

import pytest
import torch

from compressor.errors import StageError
from compressor.low_rank.settings import Channelwise, Energy, WeightError
from compressor.stage import Context
from compressor.stages import FactorizeLayers
from compressor.structure.factored.chains import is_transposed
from compressor.structure.factored.recurrent import BehindProjection, input_names
from compressor.structure.plan import apply_plan_
from compressor.structure.trials import evaluating
from compressor.workload import predict
from workbench.zoo import ARCHITECTURES
from workbench.zoo.check import workload_of

# Which of them has nothing but transposed convolutions.
REFUSED = {"DCGAN generator": "ConvTranspose2d is no plain"}


def put_product_(layer, chain):
    """Gives `layer` the product of a chain of two as its weight."""
    if isinstance(chain, BehindProjection):
        names = input_names(layer)
        whole = torch.cat([getattr(chain.recurrent, name) for name in names]) @ chain.projection.weight
        for name, part in zip(names, whole.chunk(len(names)), strict=True):
            getattr(layer, name).copy_(part)
        return
    product = chain[1].weight.flatten(1) @ chain[0].weight.flatten(1)
    layer.weight.copy_(product.t() if is_transposed(layer) else product.reshape(layer.weight.shape))


def compared(architecture):
    """The outputs of the factorised network and of the one with the products, and how many layers are chains."""
    model = architecture.build().eval()
    workload, context = workload_of(architecture, model), Context(progress=False, plan=[], details={})
    stage = FactorizeLayers(target=Energy(0.8), kernels=Channelwise(), near=WeightError(), align=1)
    made = stage.apply(copy.deepcopy(model), workload, context)
    *before, last = json.loads(json.dumps(context.plan))
    dense = apply_plan_(copy.deepcopy(model), before)
    with torch.no_grad():
        for name in last["layers"]:
            put_product_(dense.get_submodule(name), made.get_submodule(name))
        outputs = []
        for network in (made, dense):
            torch.manual_seed(1)
            with evaluating(network):
                outputs.append(predict(network, workload.example_inputs))
    return (*outputs, len(last["layers"]))


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_a_factorised_network_is_the_one_with_the_products(architecture):
    """Whatever the layers stand in; a network without any that can be a chain says why."""
    if architecture.name in REFUSED:
        with pytest.raises(StageError, match=REFUSED[architecture.name]):
            compared(architecture)
        return
    got, wanted, count = compared(architecture)
    assert count > 0
    torch.testing.assert_close(got, wanted, atol=1e-5 * float(wanted.abs().max()) + 1e-12, rtol=1e-5)
