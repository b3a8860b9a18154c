"""A network of two layers with a stage and an exporter that take no time: what runs do around them is quick to test."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from compressor import Context, Effect, Workload
from compressor.files.export_memory import Exported

INPUTS = torch.randn(48, 4, generator=torch.Generator().manual_seed(0))
TARGETS = (INPUTS[:, 0] > 0).long()


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Multiplies the weights, and tells by how much."""

    effect: ClassVar[Effect] = Effect.VALUES
    by: float = 0.5

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(self.by)
        context.details["told"] = [self.by]
        return model


def small_workload(seed: int = 0, **changes: Any) -> Workload:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    made = Workload.from_datasets(net, train=(INPUTS, TARGETS), test=(INPUTS, TARGETS), batch_size=16)
    return replace(made, **changes)


def export(model: nn.Module, workload: Workload, *, memory: Any) -> Exported:
    """The two layers as ONNX, written by hand: the exporter takes a second for them."""
    weights = {name.replace(".", "_"): tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    nodes = [
        helper.make_node("Gemm", ["input", "0_weight", "0_bias"], ["hidden"], transB=1),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "2_weight", "2_bias"], ["output"], transB=1),
    ]
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", kind, ["batch", 4])],
        [helper.make_tensor_value_info("output", kind, ["batch", 2])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return Exported(onnx_bytes=made.SerializeToString(), exporter="by hand", opset=20, notes=())
