"""A graph that is written anew: what was read is not changed, what nothing reads is gone."""

import numpy as np
from onnx import helper

from compressor.quantization.placement.written import Rewriting, Written
from workbench.onnx_graphs import graph_of


def _scaled() -> Rewriting:
    """A product with "two" and a sum with "one", of which the sum is handed on alone."""
    nodes = [
        helper.make_node("Mul", ["input", "two"], ["a"], "double"),
        helper.make_node("Add", ["a", "one"], ["output"], "end"),
    ]
    weights = {"one": np.ones(3), "two": np.full(3, 2.0)}
    return Rewriting(model=graph_of(nodes, weights, ["n", 3], ["n", 3]), weights={})


def test_the_nodes_written_take_the_place_of_the_graphs_own() -> None:
    """The double is written as a sum behind a cast that stands ahead; the constants that are read stay and come."""
    rewriting = _scaled()
    graph = rewriting.model.graph
    half = rewriting.written.constant("half", np.ones(3, np.float16))
    rewriting.written.constant("unread", np.ones(3, np.float32))
    rewriting.written.add("Add", ["input", "wide"], "a", name="double")
    rewriting.written.nodes.append(graph.node[1])
    rewriting.ahead.add("Cast", [half], "wide", to=1)
    model = rewriting.finished()
    assert [(node.op_type, node.name) for node in model.graph.node] == [
        ("Cast", "wide"),
        ("Add", "double"),
        ("Add", "end"),
    ]
    assert [tensor.name for tensor in model.graph.initializer] == ["one", "half"]
    assert [entry.domain for entry in model.opset_import] == [""]


def test_operators_of_onnx_runtime_bring_their_domain() -> None:
    """Inside of a branch too, and once."""
    for count in (1, 2):
        rewriting = _scaled()
        nodes = list(rewriting.model.graph.node)
        inner = Written()
        inner.add("QuickGelu", ["input"], "inside", domain="com.microsoft")
        branch = helper.make_graph(inner.nodes, "branch", [], [helper.make_empty_tensor_value_info("inside")])
        rewriting.written.nodes += nodes
        for index in range(count):
            rewriting.written.add("If", ["way"], f"extra{index}", then_branch=branch, else_branch=branch)
        assert [entry.domain for entry in rewriting.finished().opset_import] == ["", "com.microsoft"]


def test_the_model_given_stays_as_it_is() -> None:
    """Nodes are changed while they are read; those of the caller's model are not."""
    model = graph_of([helper.make_node("Relu", ["input"], ["output"], "relu")], {}, ["n", 3], ["n", 3])
    before = model.SerializeToString()
    rewriting = Rewriting(model=model, weights={})
    rewriting.model.graph.node[0].input[0] = "other"
    rewriting.finished()
    assert model.SerializeToString() == before
