"""What a report says of how its file is used, and that the programs which it writes run."""

import io
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from rich.console import Console

from compressor.report.report import Report
from compressor.report.snippets import cpp, javascript, netron, python, snippets
from compressor.report.use import Interface, Port, interface_of
from workbench import ROOT
from workbench.report_samples import SCRIPT, USE, hostile, nothing_kept, rollback

NAMES = ["pixels", "attention.mask"]
ODD = ["a'b\"c\\", "$x\n*/ ?>{{"]
STUB = Path(__file__).parent / "onnxruntime_stub"


def normalize(inputs):
    """What a workload of the tests does to every batch."""
    return inputs


def file_with(names: list[str]) -> bytes:
    """A file whose output is its first input plus the sum of its second, of int64, over all but the batch."""
    nodes = [
        helper.make_node("Cast", [names[1]], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["cast"], ["sum"], keepdims=1),
        helper.make_node("Reshape", ["sum", "one"], ["scalar"]),
        helper.make_node("Add", [names[0], "scalar"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(names[0], TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info(names[1], TensorProto.INT64, ["batch", 7]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor("one", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def interface(names: list[str] = NAMES) -> Interface:
    inputs = {names[0]: torch.tensor([[0.0, 0.5, 1.0]] * 2), names[1]: torch.ones(2, 7, dtype=torch.int64)}
    workload = SimpleNamespace(example_inputs=inputs, test=SimpleNamespace(transform=normalize))
    return interface_of(file_with(names), workload, "model.onnx")  # type: ignore[arg-type]  # all that is read of it


def test_the_interface_is_that_of_the_file() -> None:
    """Names, types, sizes that may vary, a shape with one sample, values, opset and the transform that is known."""
    found = interface()
    assert found.inputs == (
        Port(name="pixels", dtype="float32", shape=("batch", 3), example=(1, 3), low=0.0, high=1.0),
        Port(name="attention.mask", dtype="int64", shape=("batch", 7), example=(1, 7), low=1.0, high=1.0),
    )
    assert found.outputs == (Port(name="logits", dtype="float32", shape=("batch", 3)),)
    assert found.opset == 17
    assert found.preprocessing.startswith(f"{__name__}:normalize, the workload's transform")
    assert Interface.from_json(found.to_json(), "model.onnx") == found


@pytest.mark.parametrize(
    "odd", [{}, {"inputs": []}, {"inputs": 3, "outputs": [], "opset": "x"}, {**USE, "inputs": [7]}]
)
def test_reports_of_other_versions_say_nothing_of_use(odd: dict) -> None:
    """What is missing or odd gives no section, and no error."""
    assert Interface.from_json(odd, "model.onnx") is None
    report = replace(nothing_kept(), use=odd)
    assert "Use it" not in report.to_markdown() + report.to_html()


@pytest.mark.parametrize("names", [NAMES, ODD])
def test_the_python_program_runs(names: list[str], tmp_path, monkeypatch, capsys) -> None:
    """It finds the file beside it, feeds zeros of the right types and shapes, and prints each output."""
    (tmp_path / "model.onnx").write_bytes(file_with(names))
    monkeypatch.chdir(tmp_path)
    exec(compile(python(interface(names)).code, "use.py", "exec"), {})
    assert capsys.readouterr().out == "logits (1, 3) float32\n"


@pytest.mark.parametrize("names", [NAMES, ODD])
def test_the_cpp_program_compiles(names: list[str], tmp_path) -> None:
    """Against declarations of what it calls: the real header is not on every machine."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    (tmp_path / "app.cpp").write_text(cpp(interface(names)).code)
    done = subprocess.run(
        [compiler, "-std=c++17", "-Wall", "-Werror", "-fsyntax-only", f"-I{STUB}", "app.cpp"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("names", [NAMES, ODD])
def test_the_javascript_program_is_one(names: list[str], tmp_path) -> None:
    """Node reads it; where onnxruntime-node or onnxruntime-web is installed, it runs."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node")
    (tmp_path / "model.onnx").write_bytes(file_with(names))
    code = javascript(interface(names)).code
    (tmp_path / "use.js").write_text(code)
    assert subprocess.run([node, "--check", "use.js"], cwd=tmp_path, capture_output=True).returncode == 0
    for package in ("onnxruntime-node", "onnxruntime-web"):
        asked = f"require.resolve({package!r})"
        if subprocess.run([node, "-e", asked], cwd=tmp_path, capture_output=True).returncode == 0:
            (tmp_path / "use.js").write_text(code.replace('require("onnxruntime-node")', f"require({package!r})"))
            done = subprocess.run([node, "use.js"], cwd=tmp_path, capture_output=True, text=True)
            assert "logits [ 1, 3 ] float32" in done.stdout, done.stderr
            return


def test_every_form_ends_with_how_the_file_is_used() -> None:
    """Terminal, Markdown and page: what goes in and comes out, the opset, the preprocessing, programs, the graph."""
    report = rollback()
    stream = io.StringIO()
    report.print(Console(file=stream, width=100))
    printed, text, page = " ".join(stream.getvalue().split()), report.to_markdown(), report.to_html()
    for form in (printed, text.replace("\\", ""), page):
        assert "float32 (batch, 3, height, 32); may vary: batch, height" in form
        assert "mine:normalize, the workload" in form
        assert "pip install netron" in form
    for language in ("Python", "JavaScript", "C++", "Android (Kotlin)", "iOS (Swift)"):
        assert language in printed
        assert f"### {language}" in text
        assert language in page
    assert text.index("## Environment") < text.index("## Use it")
    assert text.count("not run where the report was made") == 2


def test_a_language_without_the_types_gets_no_program() -> None:
    """JavaScript has no arrays of float16; Python has."""
    half = Port(name="x", dtype="float16", shape=(1, 2), example=(1, 2))
    given = replace(interface(), inputs=(half,))
    assert [snippet.language for snippet in snippets(given)] == ["Python"]
    assert netron(replace(given, file="my model.onnx")) == "pip install netron && netron 'my model.onnx'"


def test_hostile_names_end_no_string() -> None:
    """Markup in names of inputs stays a string in every program, and text on the page."""
    report: Report = hostile()
    assert SCRIPT not in report.to_html()
    found = Interface.from_json(report.use, report.artifact)
    assert found is not None
    compile(python(found).code, "use.py", "exec")


def test_the_page_on_deployment_runs(tmp_path, monkeypatch) -> None:
    """Its program feeds any file of float inputs zeros of its own shapes."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ports[:1], ports[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "model.onnx"
    )
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    names: dict = {}
    exec(compile(page.partition("```python\n")[2].partition("```")[0], "deployment.md", "exec"), names)
    assert names["outputs"][0].shape == (1, 3)


@pytest.mark.parametrize("ranked", [True, False])
def test_outputs_with_sizes_that_nobody_named_are_told_by_the_example(*, ranked: bool) -> None:
    """As what they are for it: nonzero places of 2 rows of 3 numbers, two of them 0, and no shape at all of another."""
    nodes = [helper.make_node("NonZero", ["x"], ["places"]), helper.make_node("Relu", ["x"], ["y"])]
    outputs = [
        helper.make_tensor_value_info("places", TensorProto.INT64, [2, None] if ranked else None),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])], outputs
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    inputs = torch.tensor([[0.0, 0.5, 1.0], [0.0, -1.0, 2.0]])
    workload = SimpleNamespace(example_inputs=inputs, test=SimpleNamespace(transform=normalize))
    found = interface_of(model.SerializeToString(), workload, "model.onnx")  # type: ignore[arg-type]  # all that is read
    told = dict(found.facts())
    assert told["output places"].startswith("int64 (")
    assert told["output places"].endswith("sizes that it does not name, (2, 4) for the example")
    assert told["output y"] == "float32 (batch, 3); may vary: batch"
    assert Interface.from_json(found.to_json(), "model.onnx") == found


@pytest.mark.parametrize(
    ("shape", "sizes", "free"),
    [
        (("batch", 3, "height", "width"), "(batch, 3, height, width)", ("batch", "height", "width")),
        (("batch", "floor(height/8) + 1"), "(batch, floor(height/8) + 1)", ("batch", "height")),
        (("n", 22, "floor(h/2 - 1/2)*floor(w/2 - 1/2) + 1"), "(n, 22, computed from h and w)", ("n", "h", "w")),
        (("n", "Max(1, s0//2)*Max(1, s0//2)*7"), "(n, computed from s0)", ("n", "s0")),
        (("unk__0", "?"), "(unk__0, ?)", ("unk__0",)),
        (("tower/of/inputs/length", "s0//2"), "(tower/of/inputs/length, s0//2)", ("tower/of/inputs/length", "s0")),
        (("2*3 + 4*5 + 6*7 + 8*9 + 10*11",), "(computed,)", ("2*3 + 4*5 + 6*7 + 8*9 + 10*11",)),
    ],
)  # fmt: skip
def test_sizes_that_are_computed_name_what_they_depend_on(shape, sizes: str, free: tuple[str, ...]) -> None:
    """A formula of a line says less than the names in it; what may vary are those, not the formula."""
    port = Port(name="y", dtype="float32", shape=shape)
    assert port.sizes == sizes
    assert port.free == free
