"""The file as a picture: where nodes and edges lie, what boxes cost, and what they are coupled with."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("starlette")

from compressor.files.export import export_onnx
from compressor.inspection.inspection import inspect
from compressor.measuring.macs import count_macs
from compressor.store.kept import StoreWarning
from compressor.studio import desk as desks
from compressor.studio.desk import Desk, Visitor
from compressor.studio.drawing import drawn, told
from compressor.studio.layout import laid_out
from compressor.studio.pages import render
from compressor.studio.picture import Detail, Operator, Picture
from compressor.target import Target
from workbench.studio import long_picture
from workbench.tiny import TinyResNet, make_workload


def test_a_chain_is_straight_and_a_shortcut_runs_below():
    """0-1-2-3 with 0-3 besides: four columns in lane 0, and the shortcut in lane 1 between its ends."""
    layout = laid_out(4, [(0, 1), (1, 2), (2, 3), (0, 3)])
    assert layout.nodes == ((0, 0), (1, 0), (2, 0), (3, 0))
    assert layout.ways[3] == ((0, 0), (1, 1), (2, 1), (3, 0))
    assert (layout.columns, layout.lanes) == (4, 2)


def test_branches_that_could_cross_do_not():
    """Two chains side by side keep their lanes, in whatever order their edges are given."""
    layout = laid_out(6, [(0, 3), (1, 2), (2, 4), (3, 5)])
    assert [layout.nodes[node][1] for node in (0, 3, 5)] in ([0, 0, 0], [1, 1, 1])


@pytest.mark.parametrize("edge", [(1, 1), (2, 1), (0, 9), (-1, 1)])
def test_an_edge_leads_onwards(edge):
    """What would be a circle, or leads to nothing, is refused."""
    with pytest.raises(ValueError, match="lower to higher"):
        laid_out(3, [edge])


def test_no_two_nodes_have_one_place():
    """A dense graph of 200 nodes: every node has a place of its own, right of all that it reads."""
    edges = [(a, b) for a in range(200) for b in range(a + 1, min(200, a + 9), 3)]
    layout = laid_out(200, edges)
    assert len(set(layout.nodes)) == 200
    assert all(layout.nodes[a][0] < layout.nodes[b][0] for a, b in edges)


def test_five_thousand_nodes_are_laid_out_once():
    """Every node of a long network is a box of its own; asked for again, the drawing is there."""
    picture = long_picture(5000)
    drawing = picture.drawing(Detail.OPERATORS)
    assert len(set(drawing.layout.nodes)) == len(drawing.boxes) == 5000
    assert drawing.layout.columns == 5000
    assert picture.drawing(Detail.OPERATORS) is drawing


@pytest.fixture(scope="module")
def looked():
    """A small residual CNN, inspected and drawn."""
    torch.manual_seed(0)
    workload = make_workload(TinyResNet().eval())
    file = export_onnx(workload.model, workload).onnx_bytes
    names = [name for name, _ in workload.model.named_modules()]
    picture = Picture.of(file, workload.example_inputs, modules=names, target=Target(), seconds=0.05)
    return workload, inspect(workload, target=Target(), seconds=0.05), picture, file


@pytest.mark.parametrize("detail", Detail)
def test_every_detail_adds_up_to_the_file(looked, detail):
    """Time, products and weights are the same however much is folded, and the products those of the whole file."""
    workload, _, picture, file = looked
    boxes = picture.drawing(detail).boxes
    assert sum(box.macs for box in boxes) == count_macs(file, workload.example_inputs)
    assert sum(box.time_fraction for box in boxes) == pytest.approx(1)
    assert sum(len(box.members) for box in boxes) == len(picture.operators)
    weights = sum(parameter.numel() for parameter in workload.model.parameters()) * 4
    assert sum(box.weight_bytes for box in boxes) == pytest.approx(weights, rel=0.2)


def test_the_time_of_a_fused_operator_is_that_of_its_product(looked):
    """Activations run inside convolutions in ONNX Runtime: they take no time of their own, and convolutions most."""
    *_, picture, _ = looked
    kinds = picture.kinds()
    assert kinds.get("Relu", 0.0) == 0
    assert max(kinds, key=kinds.get) == "Conv"


def test_a_box_tells_what_it_is_coupled_with(looked):
    """The first convolution: its channels go with the layers that add to it, and the head's outputs are locked."""
    _, inspection, picture, _ = looked
    boxes = picture.drawing(Detail.LAYERS).boxes
    number = next(number for number, box in enumerate(boxes) if box.name == "conv1")
    found = told(picture, inspection, Detail.LAYERS, number)
    assert any("layer1.0.conv1" in group["others"] for group in found["groups"])
    head = next(number for number, box in enumerate(boxes) if box.name == "linear")
    html = render("box", **told(picture, inspection, Detail.LAYERS, head))
    assert "Locked: it makes the model" in html
    assert told(picture, inspection, Detail.LAYERS, len(boxes)) is None


def test_names_of_layers_are_text(looked):
    """A module whose name is a script is drawn as text, in the picture and in its box."""
    _, inspection, *_ = looked
    evil = "<script>x</script>"
    picture = Picture(
        [Operator(kind=evil, layer=evil, module=evil, weighted=True, ms=1.0, weight_bytes=1, macs=1, sources=())]
    )
    for html in (
        render("picture", **drawn(picture, inspection, Detail.LAYERS)),
        render("box", **told(picture, inspection, Detail.LAYERS, 0)),
    ):
        assert "<script" not in html
        assert "&lt;script&gt;" in html


def test_blocks_are_fewer_than_layers_and_layers_fewer_than_operators(looked):
    """The residual blocks of the network are boxes, and each addition is drawn after the layers that it adds."""
    *_, picture, _ = looked
    counts = [len(picture.drawing(detail).boxes) for detail in Detail]
    assert counts == sorted(counts)
    assert {"layer1.0", "layer2.0"} <= {box.name for box in picture.drawing(Detail.BLOCKS).boxes}
    drawing = picture.drawing(Detail.LAYERS)
    added = next(number for number, box in enumerate(drawing.boxes) if "Add" in box.kinds)
    assert len([edge for edge in drawing.edges if edge[1] == added]) == 2


@pytest.mark.parametrize(
    "query",
    [{"detail": "everything"}, {"detail": "layers", "number": "-1"}, {"number": "1e3"}, {"number": "9" * 40}, {}],
)
def test_what_is_not_there_is_not_shown(looked, query, tmp_path):
    """Details and numbers that do not exist give nothing, whatever was asked."""
    workload, inspection, picture, _ = looked
    desk = Desk(workload, "small", Target(), tmp_path)
    desk.inspection, desk.picture = inspection, picture
    assert desk.part("box", query, Visitor()) is None


def test_a_model_is_exported_once_and_again_when_it_is_another(looked, tmp_path, monkeypatch):
    """A later studio takes the very file from the store, verified there; another weight or other calls make another."""
    workload, made = looked[0], []

    def export(model, workload):
        made.append(model)
        return SimpleNamespace(onnx_bytes=b"file %d" % len(made))

    monkeypatch.setattr(desks, "export_onnx", export)
    assert [desks._exported(workload) for _ in range(2)] == [b"file 1", b"file 2"]
    monkeypatch.setenv("COMPRESSOR_STORE", str(tmp_path / "store"))
    assert [desks._exported(workload) for _ in range(2)] == [b"file 3", b"file 3"]
    (stored,) = (tmp_path / "store").rglob("model.onnx")
    other = copy.deepcopy(workload.model)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    assert desks._exported(replace(workload, model=other)) == b"file 4"
    longer = torch.cat([workload.example_inputs] * 2)
    assert desks._exported(replace(workload, example_inputs=longer)) == b"file 5"
    stored.write_bytes(b"damaged")
    with pytest.warns(StoreWarning, match="not the file that was written"):
        assert desks._exported(workload) == b"file 6"


def test_a_drawing_is_made_once_until_there_is_another(looked, tmp_path, monkeypatch):
    """For every page that asks; its times and what can go make it anew."""
    workload, inspection, picture, _ = looked
    desk, made = Desk(workload, "small", Target(), tmp_path), []
    monkeypatch.setattr(desks, "drawn", lambda *given: made.append(given) or drawn(*given))
    desk.picture = picture
    first = [desk.part("picture", {"detail": "layers"}, Visitor()) for _ in range(2)]
    assert first[0] == first[1]
    assert len(made) == 1
    desk.inspection = inspection
    assert desk.part("picture", {"detail": "layers"}, Visitor()) != first[0]
    desk.picture = long_picture(20)
    assert "net.19" in desk.part("picture", {"detail": "layers"}, Visitor())
    assert len(made) == 3
