"""Small ONNX files that ask for what nobody has, or hold something else than they say."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
OUT = helper.make_tensor_value_info("y", FLOAT, None)
RELU = helper.make_node("Relu", ["x"], ["y"])


def file_of(
    nodes: Sequence[NodeProto],
    constants: Sequence[TensorProto] = (),
    *,
    shape: Sequence[int | str] = ("n", 4),
    output: onnx.ValueInfoProto = OUT,
    opset: int = 17,
) -> ModelProto:
    """A file with the input x and the output y."""
    x = helper.make_tensor_value_info("x", FLOAT, shape)
    graph = helper.make_graph(list(nodes), "hostile", [x], [output], list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def integers(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, dtype=np.int64), name)


def weight(**changed: Any) -> ModelProto:
    """X @ w with a constant w of 4 x 4 whose facts are changed."""
    constant = numpy_helper.from_array(np.ones((4, 4), dtype=np.float32), "w")
    for name, value in changed.items():
        if name == "dims":
            del constant.dims[:]
            constant.dims.extend(value)
        else:
            setattr(constant, name, value)
    return file_of([helper.make_node("MatMul", ["x", "w"], ["y"])], [constant])


def outside(**facts: str) -> ModelProto:
    """X @ w whose constant lies in another file."""
    constant = TensorProto(name="w", data_type=FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    for key, value in facts.items():
        constant.external_data.add(key=key, value=value)
    return file_of([helper.make_node("MatMul", ["x", "w"], ["y"])], [constant])


def summed(
    op_type: str, inputs: Sequence[str], *constants: TensorProto, shape: Sequence[int | str] = ("n", 4)
) -> ModelProto:
    """The sum of what an operator makes."""
    nodes = [helper.make_node(op_type, list(inputs), ["big"]), helper.make_node("ReduceSum", ["big"], ["y"])]
    return file_of(nodes, constants, shape=shape)


def grows(times: int) -> ModelProto:
    """A file that makes `times` zeros for every value of its input: how many is known when it runs."""
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Mul", ["sizes", "times"], ["more"]),
        helper.make_node("ConstantOfShape", ["more"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    return file_of(nodes, [integers("times", times, 1)])


def endless() -> ModelProto:
    """A loop without a count whose condition stays true."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["goes"]), helper.make_node("Relu", ["state"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("step", INT64, []),
            helper.make_tensor_value_info("go", BOOL, []),
            helper.make_tensor_value_info("state", FLOAT, None),
        ],
        [helper.make_tensor_value_info("goes", BOOL, []), helper.make_tensor_value_info("next", FLOAT, None)],
    )
    forever = numpy_helper.from_array(np.array(True), "forever")
    return file_of([helper.make_node("Loop", ["", "forever", "x"], ["y"], body=body)], [forever])


def doubling_functions(levels: int) -> ModelProto:
    """Functions each of which calls the next one twice: 2 ** levels operators once they are written out."""
    domains = [helper.make_opsetid("mine", 1), helper.make_opsetid("", 17)]
    functions = []
    for level in range(levels):
        name, domain = (f"F{level + 1}", "mine") if level + 1 < levels else ("Relu", "")
        calls = [helper.make_node(name, [a], [b], domain=domain) for a, b in (("a", "b"), ("b", "c"))]
        functions.append(helper.make_function("mine", f"F{level}", ["a"], ["c"], calls, domains))
    model = file_of([helper.make_node("F0", ["x"], ["y"], domain="mine")])
    del model.opset_import[:]
    model.opset_import.extend(domains)
    model.functions.extend(functions)
    return model


def written(model: ModelProto | bytes, folder: Path) -> Path:
    path = folder / "hostile.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path
