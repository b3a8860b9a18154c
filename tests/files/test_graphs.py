"""The grammar of ONNX graphs, on graphs made by hand: a branch in a loop, optional inputs, outputs that are read."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.files import graphs


def value(name: str, kind: int = TensorProto.FLOAT, shape: list | None = None) -> onnx.ValueInfoProto:
    """A tensor of the given type; without a shape its rank is unknown."""
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name: str) -> onnx.TensorProto:
    """A float32 constant of one element."""
    return numpy_helper.from_array(np.ones(1, np.float32), name)


def nested() -> onnx.ModelProto:
    """`state` goes round a Loop, which adds `far` or doubles `outer`, in the branches of an If.

    The loop's own constant and the branch's own result are called "own" and "sum"; "loose" is read by nothing.
    """
    then = helper.make_graph(
        [helper.make_node("Add", ["far", "state_in"], ["sum"], "add")], "then", [], [value("sum", shape=[1])]
    )
    other = helper.make_graph(
        [helper.make_node("Add", ["outer", "outer"], ["twice"], "double")], "other", [], [value("twice", shape=[1])]
    )
    choose = helper.make_node("If", ["keep_going"], ["chosen"], "choose", then_branch=then, else_branch=other)
    body = helper.make_graph(
        [
            choose,
            helper.make_node("Mul", ["chosen", "own"], ["state_out"], "scale"),
            helper.make_node("Identity", ["keep_going"], ["on"], "hand_on"),
        ],
        "body",
        [value("turn", TensorProto.INT64, []), value("keep_going", TensorProto.BOOL, []), value("state_in", shape=[1])],
        [value("on", TensorProto.BOOL, []), value("state_out", shape=[1])],
        [constant("own")],
    )
    nodes = [
        helper.make_node("Relu", ["input"], ["outer"], "relu"),
        helper.make_node("Loop", ["turns", "", "outer"], ["last"], "loop", body=body),
        helper.make_node("Add", ["last", "outer"], ["output"], "end"),
    ]
    turns = numpy_helper.from_array(np.array(3), "turns")
    graph = helper.make_graph(
        nodes,
        "g",
        [value("input", shape=[1])],
        [value("output", shape=[1]), value("last", shape=[1])],
        [turns, constant("far"), constant("loose")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def test_a_node_reads_what_its_inner_graphs_read_from_outside() -> None:
    """The loop reads its inputs, then `outer` and `far` two graphs deep, and nothing that is made inside of it."""
    loop = nested().graph.node[1]
    assert graphs.names_captured(loop) == ["outer", "outer", "far"]
    assert graphs.names_read(loop) == ["turns", "outer", "outer", "outer", "far"]


def test_an_outer_tensor_that_a_branch_hands_on_is_read() -> None:
    """A branch without nodes that gives out `outer` reads it."""
    branch = helper.make_graph([], "branch", [], [value("outer", shape=[1])])
    node = helper.make_node("If", ["way"], ["result"], then_branch=branch, else_branch=branch)
    assert graphs.names_read(node) == ["way", "outer", "outer"]


def test_the_readers_of_a_tensor_are_found_through_loops() -> None:
    """`outer` goes into the loop, is read twice inside of it, and once behind it; "" is no tensor."""
    found = graphs.readers(nested().graph.node)
    assert [node.name for node in found["outer"]] == ["loop", "loop", "loop", "end"]
    assert [node.name for node in found["last"]] == ["end"]  # an output of the graph that is read as well
    assert found["own"] == []
    assert "" not in found


def test_nodes_and_graphs_come_with_those_inside_of_them() -> None:
    """Four graphs, and each node is followed by what is inside of it; ONNX lists the branches by name, else first."""
    graph = nested().graph
    assert [inner.name for inner in graphs.all_graphs(graph)] == ["g", "body", "other", "then"]
    names = ["relu", "loop", "choose", "double", "add", "scale", "hand_on", "end"]
    assert [node.name for node in graphs.all_nodes(graph)] == names


def test_an_output_that_is_left_out_has_no_producer() -> None:
    """An LSTM that gives its last state alone makes that tensor and no tensor called ""."""
    node = helper.make_node("LSTM", ["x", "w", "r"], ["", "last"], "lstm")
    assert graphs.producers([node]) == {"last": node}
    assert graphs.names_read(helper.make_node("Clip", ["x", "", "most"], ["y"])) == ["x", "most"]


def test_constants_stay_that_are_read_inside_or_given_out() -> None:
    """Of `turns`, `far` and `loose` the last goes, unless the graph gives it out."""
    model = nested()
    graphs.drop_unused_initializers_(model.graph)
    assert list(graphs.initializers(model.graph)) == ["turns", "far"]
    model = nested()
    model.graph.output.append(value("loose", shape=[1]))
    graphs.drop_unused_initializers_(model.graph)
    assert list(graphs.initializers(model.graph)) == ["turns", "far", "loose"]


def test_nodes_are_replaced_by_others_or_by_their_own_in_another_order() -> None:
    """Three nodes turned around are the same three."""
    model = nested()
    graphs.replace_nodes_(model.graph, reversed(model.graph.node))
    assert [node.name for node in model.graph.node] == ["end", "loop", "relu"]


def test_attributes_are_values_and_have_defaults() -> None:
    """A number, a list and a text (bytes in ONNX); what is not set is the default that is asked for."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2, pads=[1, 1, 0, 0], auto_pad="VALID")
    assert graphs.attributes(node) == {"group": 2, "pads": [1, 1, 0, 0], "auto_pad": b"VALID"}
    assert graphs.attribute(node, "group", 1) == 2
    assert graphs.attribute(node, "strides", [1, 1]) == [1, 1]


def test_sizes_that_vary_are_none_and_unknown_ranks_are_left_out() -> None:
    """(batch, 3) flattened stays so; what an operator that nobody knows gives has no shape; a scalar has rank 0."""
    nodes = [
        helper.make_node("Relu", ["input"], ["middle"]),
        helper.make_node("Strange", ["middle"], ["odd"], domain="elsewhere"),
        helper.make_node("ReduceSum", ["middle"], ["total"], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "g", [value("input", shape=["batch", 3])], [value("odd"), value("total")])
    versions = [helper.make_opsetid("", 20), helper.make_opsetid("elsewhere", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=10)
    assert graphs.shapes(model) == {"input": (None, 3), "middle": (None, 3), "total": ()}
    assert graphs.ranks(model) == {"input": 2, "middle": 2, "total": 0}
    assert graphs.opset_of(model) == 20


def test_bytes_that_hold_no_model_are_refused() -> None:
    """Eight bytes of nonsense, and an empty file, are no ONNX model; the error gives the number of bytes."""
    with pytest.raises(ValueError, match="8 bytes are no ONNX model"):
        graphs.parse(b"nonsense")
    with pytest.raises(ValueError, match="0 bytes has no graph"):
        graphs.parse(b"")


def test_a_copy_does_not_follow_the_original() -> None:
    """Renaming a node of the copy leaves the model as it was."""
    model = nested()
    graphs.copy_of(model).graph.node[0].name = "other"
    assert model.graph.node[0].name == "relu"


def test_a_file_without_onnx_operators_has_no_opset() -> None:
    """A file of operators from elsewhere alone is refused, with the domains that it names."""
    model = helper.make_model(nested().graph, opset_imports=[helper.make_opsetid("elsewhere", 1)])
    with pytest.raises(ValueError, match=r"only of \['elsewhere'\]"):
        graphs.opset_of(model)
