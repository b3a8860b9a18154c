"""What a file says of itself reaches every file that is made of it: metadata, names, their order and types."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import StageError
from compressor.files.carrying import carried_over
from compressor.files.graphs import parse
from compressor.files.reading import read_onnx
from compressor.quantization.accuracy.adaptive_rounding import AdaRound
from compressor.quantization.accuracy.bias_correction import BiasCorrection
from compressor.quantization.accuracy.gptq import GPTQ
from compressor.quantization.accuracy.smoothing import SmoothQuant
from compressor.quantization.grids.schemes import Symmetric
from compressor.quantization.placement.forms import Dynamic, Fastest, Float16, Static, WeightOnly
from compressor.running.pipeline import Pipeline
from compressor.stage import Context
from compressor.stages.quantization import Quantize
from compressor.stages.quantization_aware import QuantizationAwareTraining
from compressor.target import Isa, Target
from compressor.workload import Workload
from workbench.onnx_graphs import with_branch

QUIET = Context(progress=False)
SAID = {"character": "0\n90\n180\n270", "names": "{0: 'cat', 1: 'Straße'}", "stride": "32", "compressor.old": "gone"}


def labelled(*, opset: int = 20, batch: str | int = "n", counts: bool = True) -> onnx.ModelProto:
    """A file that says a lot: three inputs, one of them unused, and two outputs, three where one `counts` classes."""
    generator = np.random.default_rng(0)
    weights = {"W": (64, 96), "V": (96, 8), "b": (8,)}
    values = [
        numpy_helper.from_array(generator.normal(0, 0.2, shape).astype(np.float32), name)
        for name, shape in weights.items()
    ]
    nodes = [
        helper.make_node("Concat", ["zeta", "alpha"], ["x"], axis=1),
        helper.make_node("MatMul", ["x", "W"], ["a"]),
        helper.make_node("Relu", ["a"], ["features"]),
        helper.make_node("Gemm", ["features", "V", "b"], ["Scores:0"]),
        helper.make_node("ArgMax", ["Scores:0"], ["best"], axis=1, keepdims=0),
    ]
    inputs = [("zeta", TensorProto.FLOAT, [batch, 40]), ("unused", TensorProto.INT64, [batch, 2])]
    inputs += [("alpha", TensorProto.FLOAT, [batch, 24])]
    outputs = [("Scores:0", TensorProto.FLOAT, [batch, 8]), ("best", TensorProto.INT64, [batch])]
    outputs += [("features", TensorProto.FLOAT, [batch, 96])]
    if not counts:
        del nodes[-1], outputs[1]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info(*each, doc_string="what it is") for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        values,
        doc_string="of the graph",
    )
    graph.input[0].type.denotation = "TENSOR"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model.producer_name, model.domain, model.model_version, model.doc_string = "acme", "org.acme", 7, "of the file"
    helper.set_model_props(model, SAID)
    return model


def said(onnx_bytes: bytes) -> dict[str, object]:
    """What programs can ask a session for, without what this package wrote."""
    session = ort.InferenceSession(onnx_bytes, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta()
    return {
        "metadata": {
            key: value for key, value in facts.custom_metadata_map.items() if not key.startswith("compressor.")
        },
        "facts": (facts.domain, facts.version, facts.description, facts.graph_name, facts.graph_description),
        "inputs": [(value.name, value.type, value.shape) for value in session.get_inputs()],
        "outputs": [(value.name, value.type, value.shape) for value in session.get_outputs()],
    }


def workload_of(path: Path) -> Workload:
    generator = torch.Generator().manual_seed(0)
    data = (
        torch.randn(96, 40, generator=generator),
        torch.zeros(96, 2, dtype=torch.long),
        torch.randn(96, 24, generator=generator),
    )
    model = read_onnx(path)
    inputs = dict(zip(("zeta", "unused", "alpha"), data, strict=True))
    scores = torch.from_numpy(model.session.run(["Scores:0"], {n: v.numpy() for n, v in inputs.items()})[0])
    part = inputs, scores.argmax(dim=1)
    return Workload.from_datasets(
        model, train=part, validation=part, test=part, metric="accuracy", batch_size=16, name="labelled"
    )


SETTINGS = {
    "default": Quantize(),
    "static": Quantize(form=Static()),
    "dynamic": Quantize(form=Dynamic()),
    "weights alone": Quantize(form=WeightOnly()),
    "weights of 3 bits, packed": Quantize(form=Static(), weights=Symmetric(bits=3)),
    "float16": Quantize(form=Float16()),
    "fastest": Quantize(form=Fastest()),
    "not checked on other processors": Quantize(portable=None),
    "closed form": Quantize(form=Static(), rounding=GPTQ()),
    "learned rounding": Quantize(form=Static(), rounding=AdaRound(iterations=10)),
    "smoothed and corrected": Quantize(
        form=Static(), smoothing=SmoothQuant(insert=True), bias_correction=BiasCorrection()
    ),
}


@pytest.mark.parametrize("how", SETTINGS)
def test_every_form_of_integers_carries_what_the_file_says(how: str, tmp_path: Path) -> None:
    """Metadata, description, names, order, types and shapes are those of the float file, whatever is done to it."""
    # What learns needs every operator in torch, too.
    onnx.save(labelled(counts="rounding" not in how and how != "closed form"), str(tmp_path / "given.onnx"))
    workload = workload_of(tmp_path / "given.onnx")
    shipped = SETTINGS[how].apply(workload.model, workload, QUIET)
    assert said(shipped.onnx_bytes) == said((tmp_path / "given.onnx").read_bytes())
    # What was true of the file that it was made of is not said of this one.
    assert "compressor.old" not in shipped.session.get_modelmeta().custom_metadata_map


def test_a_file_for_other_processors_and_one_with_branches_carry_it_too(tmp_path: Path) -> None:
    """Arm's form, and a file whose names cannot be shortened because branches read them."""
    onnx.save(labelled(), str(tmp_path / "given.onnx"))
    workload = workload_of(tmp_path / "given.onnx")
    arm = Context(progress=False, target=Target(isa=Isa.ARM_DOT))
    shipped = Quantize(form=Static()).apply(workload.model, workload, arm)
    assert said(shipped.onnx_bytes) == said((tmp_path / "given.onnx").read_bytes())
    onnx.save(with_branch(labelled(), "features"), str(tmp_path / "branch.onnx"))
    workload = workload_of(tmp_path / "branch.onnx")
    shipped = Quantize().apply(workload.model, workload, QUIET)
    assert said(shipped.onnx_bytes) == said((tmp_path / "branch.onnx").read_bytes())


@pytest.mark.parametrize("kind", ["old opset", "fixed batch", "weights as inputs"])
def test_reading_carries_what_the_file_says(kind: str, tmp_path: Path) -> None:
    """A file that is changed when it is read says the same, but for the size of its batch and our own notes."""
    model = labelled(opset=12 if kind == "old opset" else 20, batch=4 if kind == "fixed batch" else "n")
    if kind == "weights as inputs":
        model.graph.input.extend(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            for tensor in model.graph.initializer
        )
    onnx.save(model, str(tmp_path / "given.onnx"))
    before, after = said((tmp_path / "given.onnx").read_bytes()), said(read_onnx(tmp_path / "given.onnx").onnx_bytes)
    for side in ("inputs", "outputs"):
        assert [each[:2] for each in after[side]] == [each[:2] for each in before[side]]
    assert (after["metadata"], after["facts"]) == (before["metadata"], before["facts"])


def test_the_file_that_ships_carries_it(tmp_path: Path) -> None:
    """The file in the folder of a run says what the given one did, and so does one that learned as integers."""
    onnx.save(labelled(counts=False), str(tmp_path / "given.onnx"))
    workload, given = workload_of(tmp_path / "given.onnx"), said((tmp_path / "given.onnx").read_bytes())
    result = Pipeline([Quantize()]).run(workload, out=tmp_path / "run", progress=False)
    assert result.report.steps[-1].kept
    assert said(result.artifact.path.read_bytes()) == given
    assert said(QuantizationAwareTraining(epochs=1).apply(workload.model, workload, QUIET).onnx_bytes) == given


def test_other_names_and_types_are_refused() -> None:
    """A file that would be fed or read otherwise is not made: renamed, reordered, of another type, or one fewer."""
    source = labelled()
    changes = [parse(source.SerializeToString()) for _ in range(4)]
    changes[0].graph.output[0].name = "BEST"
    changes[1].graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    del changes[2].graph.output[2]
    swapped = [changes[3].graph.input[2], changes[3].graph.input[0]]
    held = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in swapped]
    changes[3].graph.input[0].CopyFrom(held[0])
    changes[3].graph.input[2].CopyFrom(held[1])
    for changed in changes:
        with pytest.raises(StageError, match="must keep its"):
            carried_over(changed.SerializeToString(), source.SerializeToString())
    assert carried_over(source.SerializeToString(), source.SerializeToString())
