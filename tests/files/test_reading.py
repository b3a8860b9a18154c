"""ONNX files from elsewhere: read, made ready, quantized, and refused with what to do."""

import io
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from compressor.errors import OnnxFileError, StageError, WorkloadError
from compressor.files.carrying import reading_notes
from compressor.files.opening import given_size
from compressor.files.reading import judged_by, read_onnx
from compressor.inspection.inspection import inspect
from compressor.measuring.scores import score_rows
from compressor.running.pipeline import Pipeline
from compressor.runtime import OnnxModule
from compressor.stage import Context
from compressor.stages.channel_pruning import PruneChannels
from compressor.stages.quantization import Quantize
from compressor.stages.quantization_aware import QuantizationAwareTraining
from compressor.target import Target
from compressor.workload import Workload, predict
from compressor.workloads import load
from workbench.onnx_files import saved_onnx
from workbench.tiny import TinyResNet, synthetic_images

QUIET = Context(progress=False)


def exported(model: nn.Module, example: Tensor, *, opset: int = 17, free: bool = True) -> onnx.ModelProto:
    """What torch's older exporter writes, without folding BatchNorm: the files that people have."""
    file = io.BytesIO()
    torch.onnx.export(
        model.eval(),
        (example,),
        file,
        dynamo=False,
        opset_version=opset,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "n"}, "logits": {0: "n"}} if free else None,
    )
    return onnx.load_from_string(file.getvalue())


def written(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "given.onnx"
    onnx.save(model, str(path))
    return path


def workload_of(model: nn.Module) -> Workload:
    return Workload.from_datasets(
        model, train=synthetic_images(96, seed=1), test=synthetic_images(48, seed=2), batch_size=16, name="file"
    )


@pytest.fixture(scope="module")
def trained(_trained_model: TinyResNet) -> TinyResNet:
    return _trained_model


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.onnx", "ignore:You are using the legacy")


@pytest.mark.parametrize("kind", ["free batch", "old opset", "fixed batch", "weights as inputs"])
def test_files_as_people_have_them_are_quantized(trained: TinyResNet, kind: str, tmp_path: Path) -> None:
    """The batch becomes free and the opset new; outputs are those of the model, and it is quantized."""
    images, _ = synthetic_images(8, seed=3)
    model = exported(trained, images[:1], opset=11 if kind == "old opset" else 17, free=kind != "fixed batch")
    if kind == "weights as inputs":
        model.graph.input.extend(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            for tensor in model.graph.initializer
        )
    module = read_onnx(written(model, tmp_path))
    assert [value.name for value in module.session.get_inputs()] == ["image"]
    with torch.no_grad():
        torch.testing.assert_close(module(images), trained(images), rtol=1e-3, atol=1e-4)
    context = Context(progress=False)
    quantized = Quantize().apply(module, workload_of(module), context)
    assert isinstance(quantized, OnnxModule)
    assert context.details["form"]["static"] == 13
    assert context.details["sqnr_db"] > 15


def test_a_file_learns_as_integers(trained: TinyResNet, tmp_path: Path) -> None:
    """Quantization-aware training needs the graph alone; what narrows layers needs a model of torch, and says so."""
    module = read_onnx(written(exported(trained, torch.randn(1, 3, 8, 8)), tmp_path))
    workload = workload_of(module)
    context = Context(progress=False)
    QuantizationAwareTraining(epochs=1).apply(module, workload, context)
    assert context.details["agreement"]["torch_to_file"] < 0.01
    with pytest.raises(WorkloadError, match=r"prune_channels needs the layers of a torch model.*quantize and"):
        Pipeline([PruneChannels(remove=0.5)]).run(workload, progress=False)


def test_reshapes_to_a_fixed_batch_are_freed(tmp_path: Path) -> None:
    """A Reshape to (1, 4, 6) or from a flat tensor infers the batch, one to (1, -1) copies it."""

    class Folding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(1, 4, 6).transpose(1, 2).sum(dim=2)

    class Spreading(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(-1).view(1, 24) * 2

    class Flattening(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(1, -1, 6).sum(dim=1)

    for model, expected in (
        (Folding(), lambda x: x.view(-1, 4, 6).sum(dim=1)),
        (Spreading(), lambda x: 2 * x),
        (Flattening(), lambda x: x.view(-1, 4, 6).sum(dim=1)),
    ):
        x = torch.randn(3, 24)
        path = written(exported(model, x[:1], free=False), tmp_path)
        torch.testing.assert_close(read_onnx(path)(x), expected(x))


def test_a_batch_of_one_that_cannot_be_freed_stays(tmp_path: Path) -> None:
    """A file that mixes its samples is called on one at a time, and says why."""

    class Mixing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(dim=0)

    path = written(exported(Mixing(), torch.randn(1, 5), free=False), tmp_path)
    module = read_onnx(path)
    assert module.fixed_batch == 1
    (told,) = reading_notes(onnx.load_from_string(module.onnx_bytes))
    assert re.search(r"its batch of 1 could not be made free \(output 0 differs.*\): it stays", told)
    torch.testing.assert_close(predict(module, torch.randn(4, 5)), torch.zeros(4, 5))


def test_a_file_without_a_batch_of_outputs_is_called_sample_by_sample(tmp_path: Path) -> None:
    """One number for all samples of a fixed batch is that of one sample."""

    class Total(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

    path = written(exported(Total(), torch.randn(1, 5), free=False), tmp_path)
    module = read_onnx(path)
    x = torch.randn(4, 5)
    torch.testing.assert_close(predict(module, module.in_rows(x)), x.sum(dim=1))


def test_weights_in_a_file_of_their_own_are_read(trained: TinyResNet, tmp_path: Path) -> None:
    """Large models keep their weights beside the graph."""
    images, _ = synthetic_images(4, seed=3)
    path = tmp_path / "apart.onnx"
    onnx.save(exported(trained, images), str(path), save_as_external_data=True, location="weights", size_threshold=0)
    assert (tmp_path / "weights").stat().st_size > 100_000
    with torch.no_grad():
        torch.testing.assert_close(read_onnx(path)(images), trained(images), rtol=1e-3, atol=1e-4)


def test_what_is_no_file_of_a_model_is_refused(tmp_path: Path) -> None:
    """A missing path, other bytes and an empty graph each have their sentence."""
    with pytest.raises(FileNotFoundError, match=r"no file .*missing\.onnx"):
        read_onnx(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("this is no model at all")
    with pytest.raises(OnnxFileError, match=r"text\.onnx is no ONNX file"):
        read_onnx(tmp_path / "text.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.onnx is no ONNX file: it has no graph"):
        read_onnx(tmp_path / "empty.onnx")


@pytest.mark.parametrize(
    ("nodes", "outputs", "said"),
    [
        ([("Add", ["x", "b"], ["a"]), ("Add", ["x", "a"], ["b"])], ["a"], r"cannot be run: .*cannot load.*export it"),
        ([("Identity", ["x"], ["y"])], [], r"has no outputs.*export it again"),
        ([("Unheard", ["x"], ["y"])], ["y"], r"cannot be run: .*cannot load.*export it again"),
    ],
)
def test_what_no_inputs_could_help_asks_for_none(tmp_path: Path, nodes, outputs, said: str) -> None:
    """A circle, a graph without outputs and an operator that nobody knows are no matter of the example."""
    graph = helper.make_graph(
        [helper.make_node(*node) for node in nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
    )
    path = written(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path)
    with pytest.raises(OnnxFileError, match=said) as refused:
        read_onnx(path)
    assert "Pass example=" not in str(refused.value)


def test_inputs_that_cannot_be_made_up_are_asked_for(tmp_path: Path) -> None:
    """A file that looks up row 700 or later of nothing fails on made-up numbers, and is read with an example."""
    table = numpy_helper.from_array(np.eye(4, dtype=np.float32), "table")
    far = numpy_helper.from_array(np.array(700, np.int64), "far")
    nodes = [helper.make_node("Sub", ["words", "far"], ["row"]), helper.make_node("Gather", ["table", "row"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("words", TensorProto.INT64, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 4])],
        [table, far],
    )
    path = written(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path)
    with pytest.raises(ValueError, match=r"cannot be run on made-up inputs: .*Pass example="):
        read_onnx(path)
    words = torch.tensor([[700, 701, 702], [703, 700, 701]])
    assert read_onnx(path, example=words)(words)[1, 0].tolist() == [0, 0, 0, 1]


def arrays(folder: Path, **values: np.ndarray) -> Path:
    path = folder / "data.npz"
    np.savez(path, **values)
    return path


def test_a_file_and_arrays_are_a_workload(trained: TinyResNet, tmp_path: Path) -> None:
    """Two paths are enough: two fifths are for the report, half of the rest decides, and the score is the model's."""
    images, targets = (values.numpy() for values in synthetic_images(200, seed=4))
    path = written(exported(trained, torch.randn(1, 3, 8, 8), free=False), tmp_path)
    data = arrays(tmp_path, image=images.astype(np.float64), targets=targets)
    workload = load(f"{path}:{data}")
    counts = {name: sum(len(labels) for _, labels in getattr(workload, name)) for name in ("validation", "test")}
    assert counts == {"validation": 60, "test": 80}
    assert (workload.name, workload.metric.name) == ("given", "accuracy")
    scored = score_rows(workload.model.onnx_bytes, workload.test, workload.metric)
    with torch.no_grad():
        right = (trained(torch.cat([inputs for inputs, _ in workload.test])).argmax(dim=1)) == torch.cat(
            [labels for _, labels in workload.test]
        )
    assert scored.tolist() == right.float().tolist()
    report = {"test_inputs": images[:30], "test_targets": targets[:30]}
    named = load(f"{path}:{arrays(tmp_path, inputs=images, targets=targets, **report)}")
    assert sum(len(labels) for _, labels in named.test) == 30


def test_a_file_is_inspected(trained: TinyResNet, tmp_path: Path) -> None:
    """The doctor times the file and counts its weights, and says where structure would be found."""
    images, targets = (values.numpy() for values in synthetic_images(40, seed=4))
    path = written(exported(trained, torch.randn(1, 3, 8, 8)), tmp_path)
    found = inspect(load(f"{path}:{arrays(tmp_path, inputs=images, targets=targets)}"), target=Target(), seconds=0.1)
    assert found.parameters > 50_000
    assert found.operators["Conv"] > 0.2
    assert found.refusals["blocks"] == found.refusals["widths"]
    assert "give the torch model" in found.refusals["blocks"]


def test_several_inputs_go_by_their_names(tmp_path: Path) -> None:
    """Each input is an array of its name; numbers as targets are judged by their squared error."""

    class Sum(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left + 2 * right

    path = tmp_path / "sum.onnx"
    torch.onnx.export(
        Sum(), (torch.ones(1, 2), torch.ones(1, 2)), path, dynamo=False, opset_version=17, input_names=["left", "right"]
    )
    left, right = np.random.default_rng(0).normal(size=(2, 40, 2)).astype(np.float32)
    workload = load(f"{path}:{arrays(tmp_path, left=left, right=right, targets=left + 2 * right)}")
    assert workload.metric.name == "mse"
    rows = score_rows(workload.model.onnx_bytes, workload.test, workload.metric)
    assert rows.mean().item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"targets": np.zeros(40, np.int64)}, r"has the arrays targets and lacks image \(or inputs\): wanted are"),
        (
            {"inputs": np.zeros((40, 3, 8, 8), np.float32), "targets": np.zeros(39, np.int64)},
            r"as many rows in every array, got 40 of image, 39 of targets",
        ),
        (
            {"inputs": np.zeros((9, 3, 8, 8), np.float32), "targets": np.zeros(9, np.int64)},
            r"has 9 samples, and at least 20 are needed",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    trained: TinyResNet, given: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    """What is missing or of another length is named, with what was found."""
    path = written(exported(trained, torch.randn(1, 3, 8, 8)), tmp_path)
    with pytest.raises(ValueError, match=message):
        load(f"{path}:{arrays(tmp_path, **given)}")


def test_files_that_are_missing_or_no_arrays_are_refused(trained: TinyResNet, tmp_path: Path) -> None:
    """Either path is named; text is no archive of arrays."""
    path = written(exported(trained, torch.randn(1, 3, 8, 8)), tmp_path)
    with pytest.raises(WorkloadError, match=r"no file none\.npz"):
        load(f"{path}:none.npz")
    with pytest.raises(WorkloadError, match=r"no file none\.onnx"):
        load(f"none.onnx:{arrays(tmp_path, inputs=np.zeros(30), targets=np.zeros(30))}")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(OnnxFileError, match=r"text\.onnx is no ONNX file"):
        load(f"{tmp_path / 'text.onnx'}:{arrays(tmp_path, inputs=np.zeros(30), targets=np.zeros(30))}")
    (tmp_path / "text.npz").write_text("no arrays")
    with pytest.raises(ValueError, match=r"text\.npz is no \.npz file of arrays.*numpy\.savez"):
        load(f"{path}:{tmp_path / 'text.npz'}")


def test_an_old_file_that_was_not_read_says_how(trained: TinyResNet) -> None:
    """A module made of the bytes themselves has their opset, in which integers have no scales for channels."""
    module = OnnxModule(exported(trained, torch.randn(2, 3, 8, 8), opset=11).SerializeToString())
    with pytest.raises(StageError, match=r"the file has opset 11.*compressor\.read_onnx"):
        Quantize().apply(module, workload_of(module), QUIET)


@pytest.mark.parametrize(("batch", "size"), [(-1, "?"), ("?", "?"), ("n", "-1"), (-1, -1)])
def test_sizes_that_are_written_as_unknown_are_free(batch: int | str, size: int | str, tmp_path: Path) -> None:
    """Some converters write -1 or "?" for every size that they do not know: no two of them need be the same."""
    shape = [batch, 3, size, size]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "kernel"], ["map"], "layer"),
            helper.make_node("GlobalAveragePool", ["map"], ["mean"], "pool"),
        ],
        "converted",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, [batch, 4, 1, 1])],
        [numpy_helper.from_array(np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32), "kernel")],
        value_info=[helper.make_tensor_value_info("map", TensorProto.FLOAT, [batch, 4, size, size])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7)
    module = read_onnx(written(model, tmp_path))
    for count in (1, 3):
        image = torch.randn(count, 3, 6, 9)
        by_torch = nn.functional.conv2d(image, torch.from_numpy(numpy_helper.to_array(graph.initializer[0]).copy()))
        assert torch.allclose(module(image), by_torch.mean(dim=(2, 3), keepdim=True), atol=1e-5)


def test_the_size_of_the_given_file_is_known_with_its_weights_elsewhere(tmp_path: Path) -> None:
    """Weights in a file of their own count, and another judged output makes no other file of it."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in ("x", "y", "z")]
    weights = [numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], weights), ir_version=8)
    path = tmp_path / "outside.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="weights", size_threshold=0)
    size = path.stat().st_size + 256
    assert given_size(read_onnx(path).onnx_bytes) == ("outside.onnx", size)
    assert given_size(judged_by(read_onnx(path).onnx_bytes, "z")) == ("outside.onnx", size)
    assert given_size(b"made of no file") is None


SHAPES = {
    "channels first": ((20, 3, 8, 8), r"\(n, 8, 8, 3\), .* the shape \(16, 3, 8, 8\); transposed by \(0, 2, 3, 1\)"),
    "too small": ((20, 6, 6, 3), r"takes \(n, 8, 8, 3\), and its values have the shape \(16, 6, 6, 3\)\. "),
    "flat": ((20, 192), r"takes \(n, 8, 8, 3\), and its values have the shape \(20, 192\)\. "),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(SHAPES))
def test_an_example_of_another_shape_is_told_what_would_fit(kind: str, tmp_path: Path) -> None:
    """What the file takes, what it was given, and the order of axes that fits where one does."""
    shape, says = SHAPES[kind]
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)]
    inputs = [("x", TensorProto.FLOAT, ["n", 8, 8, 3])]
    path = saved_onnx(tmp_path, nodes, inputs, [("y", TensorProto.FLOAT, ["n", 3])], {"axes": np.array([1, 2])})
    with pytest.raises(OnnxFileError, match=says):
        read_onnx(path, example=torch.zeros(shape))
