"""Random ONNX graphs keep, in integers, what their reports say of every output and channel, or are refused."""

import numpy as np
import onnx
import pytest

from workbench.random_graphs.check import faults, try_graph
from workbench.random_graphs.growth import RandomGraph

# Seeds are sorted into tests of this many graphs, so that processes can share them.
TOGETHER = 10
QUICK, ALL = 100, 1000
# Graphs that cannot be quantized, or that eight bits break, are told so; many more would be a fault as well.
MOST_REFUSED = 0.7


def _check(first: int) -> None:
    trials = [try_graph(seed) for seed in range(first, first + TOGETHER)]
    wrong = [f"seed {trial.seed}: {trial.reason}" for trial in trials if trial.outcome == "wrong"]
    assert not wrong, "\n".join(wrong)
    assert sum(trial.outcome == "refused" for trial in trials) <= MOST_REFUSED * len(trials), trials


@pytest.mark.parametrize("first", range(0, QUICK, TOGETHER))
def test_random_graphs_lose_no_more_than_their_reports_say(first: int) -> None:
    """No kept file loses more on any output or channel; what is refused is refused by a typed error."""
    _check(first)


@pytest.mark.random_graphs
@pytest.mark.parametrize("first", range(QUICK, ALL, TOGETHER))
def test_many_random_graphs_lose_no_more_than_their_reports_say(first: int) -> None:
    """The same for nine hundred others."""
    _check(first)


def test_graphs_have_all_that_files_have() -> None:
    """Among the first hundred are inner graphs, several outputs, states beside an input, concats and odd names."""
    grown = [RandomGraph(seed=seed) for seed in range(100)]
    graphs = [each.model.graph for each in grown]
    assert sum(each.state is not None for each in grown) > 5
    assert sum(each.single for each in grown) > 5
    kinds = {node.op_type for graph in graphs for node in graph.node}
    assert {"If", "Loop", "Concat", "Pad", "Conv", "Gemm", "MatMul", "Softmax", "ArgMax"} <= kinds
    assert sum(len(graph.output) > 1 for graph in graphs) > 30
    assert any(len(graph.input) > 1 for graph in graphs)
    assert any(" " in value.name for graph in graphs for value in graph.output)


def test_a_report_that_is_too_good_is_noticed() -> None:
    """The check must be able to fail: an output off by a tenth keeps 20 dB, and a report of 30 is found."""
    nodes = [onnx.helper.make_node("Mul", ["x", "factor"], ["y"])]
    files = []
    for factor in (1.0, 1.1):
        graph = onnx.helper.make_graph(
            nodes,
            "scaled",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4])],
            [onnx.numpy_helper.from_array(np.float32(factor), "factor")],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        files.append(model.SerializeToString())
    samples = {"x": np.random.default_rng(0).normal(size=(4000, 4)).astype(np.float32)}
    honest, boasting = ([{"output": "y", "db": value, "channel_db": None}] for value in (19.9, 30.0))
    assert faults(*files, [samples], honest) == []
    assert "'y' keeps 20.0" in faults(*files, [samples], boasting)[0]
