"""ONNX files from elsewhere: read, made ready, quantized, and refused with what to do."""

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import TinyResNet, synthetic_images
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from compressor.onnx_files import read_onnx
from compressor.pipeline import Pipeline
from compressor.runtime import OnnxModule
from compressor.stage import Context, StageError
from compressor.stages.channel_pruning import PruneChannels
from compressor.stages.quantization import Quantize
from compressor.stages.quantization_aware import QuantizationAwareTraining
from compressor.workload import Workload

QUIET = Context(progress=False)


def exported(model: nn.Module, example: Tensor, *, opset: int = 17, free: bool = True) -> onnx.ModelProto:
    """What torch's older exporter writes, without folding BatchNorm: the files that people have."""
    file = io.BytesIO()
    torch.onnx.export(
        model.eval(),
        (example,),
        file,  # type: ignore[arg-type]
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
    with pytest.raises(ValueError, match=r"prune_channels needs the layers of a torch model.*quantize and"):
        Pipeline([PruneChannels(remove=0.5)]).run(workload, progress=False)


def test_reshapes_to_a_fixed_batch_are_freed(tmp_path: Path) -> None:
    """A Reshape to (1, 4, 6) copies its batch instead; one that makes the batch another number infers it."""

    class Folding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(1, 4, 6).transpose(1, 2).sum(dim=2)

    class Spreading(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(-1).view(1, 24) * 2

    for model, expected in ((Folding(), lambda x: x.view(-1, 4, 6).sum(dim=1)), (Spreading(), lambda x: 2 * x)):
        x = torch.randn(3, 24)
        path = written(exported(model, x[:1], free=False), tmp_path)
        torch.testing.assert_close(read_onnx(path)(x), expected(x))


def test_a_batch_that_cannot_be_freed_is_refused(tmp_path: Path) -> None:
    """A file that mixes its samples, or counts them, is not for batches; the way out is named."""

    class Mixing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(dim=0)

    path = written(exported(Mixing(), torch.randn(1, 5), free=False), tmp_path)
    with pytest.raises(ValueError, match=r"is for batches of 1 alone.*output 0 differs.*dynamic_shapes"):
        read_onnx(path)


def test_what_is_no_file_of_a_model_is_refused(tmp_path: Path) -> None:
    """A missing path, other bytes and an empty graph each have their sentence."""
    with pytest.raises(FileNotFoundError, match=r"no file .*missing\.onnx"):
        read_onnx(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("this is no model at all")
    with pytest.raises(ValueError, match=r"text\.onnx is no ONNX file"):
        read_onnx(tmp_path / "text.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.onnx is no ONNX file: it has no graph"):
        read_onnx(tmp_path / "empty.onnx")


def test_inputs_that_cannot_be_made_up_are_asked_for(tmp_path: Path) -> None:
    """A file that looks up row 20 or later of nothing fails on made-up numbers, and is read with an example."""
    table = numpy_helper.from_array(np.eye(4, dtype=np.float32), "table")
    far = numpy_helper.from_array(np.array(7, np.int64), "far")
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
    words = torch.tensor([[7, 8, 9], [10, 7, 8]])
    assert read_onnx(path, example=words)(words)[1, 0].tolist() == [0, 0, 0, 1]


def test_an_old_file_that_was_not_read_says_how(trained: TinyResNet) -> None:
    """A module made of the bytes themselves has their opset, in which integers have no scales for channels."""
    module = OnnxModule(exported(trained, torch.randn(2, 3, 8, 8), opset=11).SerializeToString())
    with pytest.raises(StageError, match=r"the file has opset 11.*compressor\.read_onnx"):
        Quantize().apply(module, workload_of(module), QUIET)
