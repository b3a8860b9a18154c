"""The names of what placements add: what is built by one rule is read back by its partner."""

import numpy as np
import pytest
from onnx import helper

from compressor.quantization.grids.schemes import PerBlock, Symmetric
from compressor.quantization.grids.weights import nearest_grids
from compressor.quantization.placement import names
from compressor.quantization.placement.weight_only import place_weight_only
from workbench.onnx_graphs import graph_of


def test_a_grid_and_integers_lead_back_to_their_tensor() -> None:
    """The scale of "layer.weight" is "layer.weight_scale", its integers "layer.weight_quantized", and back again."""
    assert names.scale_of("layer.weight") == "layer.weight_scale"
    assert names.on_grid_of("layer.weight_scale") == "layer.weight"
    assert names.integers_of("layer.weight") == "layer.weight_quantized"
    assert names.stored_in("layer.weight_quantized") == "layer.weight"


@pytest.mark.parametrize("operator", ["QuantizeLinear", "DequantizeLinear"])
def test_a_conversion_tells_its_tensor_even_where_onnx_runtime_goes_on_with_its_name(operator: str) -> None:
    """The conversions of "t_1" are "t_1_QuantizeLinear" and "t_1_DequantizeLinear", with or without a token behind."""
    node = names.conversion("t_1", operator)
    assert node == f"t_1_{operator}"
    assert names.converted_by(node) == names.converted_by(f"{node}_token_3") == ("t_1", operator)
    assert names.converted_by("t_1") is None


@pytest.mark.parametrize(("size", "last"), [(None, "w_scaled"), (32, "w_moved")])
def test_the_last_step_of_unpacking_is_what_the_layer_reads(size: int | None, last: str) -> None:
    """A convolution reads its weights behind the scale, or behind the reshape that takes their blocks apart."""
    weights = {"w": np.random.default_rng(0).normal(size=(4, 4, 3, 3)).astype(np.float32)}
    model = graph_of(
        [helper.make_node("Conv", ["input", "w"], ["output"], "c")], weights, ["n", 4, 6, 6], ["n", 4, 4, 4]
    )
    scheme = Symmetric(bits=4, granularity=PerBlock(size=size)) if size else Symmetric(bits=4)
    placed = place_weight_only(model, {"c"}, nearest_grids(model, {"c": scheme}))
    made = {name for node in placed.graph.node for name in node.output}
    assert names.unpacked("w", made) == placed.graph.node[-1].input[1] == last
    assert names.unpacked("other", made) == ""
