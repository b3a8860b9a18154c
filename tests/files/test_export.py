"""Exported files compute what the model computes, tell nothing about the machine, and are the same every time."""

import copy
import hashlib
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from compressor.errors import ExportError
from compressor.files import export, exporters
from compressor.files.export import export_onnx
from compressor.files.graph_cleaning import pool_globally_
from compressor.files.graphs import OPSET
from compressor.runtime import OnnxModule, open_session, predict_batches
from compressor.workload import Workload, predict
from workbench import ROOT
from workbench.same_data import same_data


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(5, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.mean() > 0 else self.linear(-2 * x)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.gate = Branching()

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.body(x))


class Pooled(nn.Module):
    """Convolutions with BatchNorm and the pooling module of torchvision's nets."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU6())
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


class Keyed(nn.Module):
    """A masked mean of embeddings with inputs by keyword and several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        hidden = self.embedding(ids) * mask.unsqueeze(-1).float()
        return {"hidden": hidden, "logits": self.head(hidden.sum(1) / mask.unsqueeze(-1).sum(1))}


class Frozen(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, 4) if x.shape[0] == 2 else x * 2


def workload_of(model: nn.Module, inputs: Any) -> Workload:
    """A workload whose sets are two batches, of 6 and 4 samples, of the given inputs."""

    def rows(start: int, stop: int) -> Any:
        if isinstance(inputs, Mapping):
            return {name: tensor[start:stop] for name, tensor in inputs.items()}
        return tuple(t[start:stop] for t in inputs) if isinstance(inputs, tuple) else inputs[start:stop]

    data = [(rows(0, 6), torch.arange(6) % 2), (rows(6, 10), torch.arange(4) % 2)]
    return same_data(model, data, rows(0, 2))


def lived_in(model: nn.Module) -> nn.Module:
    """The model with BatchNorm statistics as after training: folding them must matter."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()
    return model


def run(onnx_bytes: bytes, **inputs: Tensor) -> Tensor:
    (output,) = open_session(onnx_bytes).run(None, {name: value.numpy() for name, value in inputs.items()})
    return torch.from_numpy(output)


def dims(onnx_bytes: bytes, name: str = "input") -> list[str | int]:
    graph = onnx.load_from_string(onnx_bytes).graph
    (value,) = [value for value in (*graph.input, *graph.output) if value.name == name]
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def operators(onnx_bytes: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(onnx_bytes).graph.node]


@pytest.fixture(scope="module")
def cnn(tiny_cnn: type[nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return lived_in(tiny_cnn())


@pytest.fixture(scope="module")
def cnn_file(cnn: nn.Module) -> export.Exported:
    torch.manual_seed(2)
    return export_onnx(cnn, workload_of(cnn, torch.randn(10, 3, 8, 8)))


def test_a_cnn_exports_with_free_batch_and_map_size(cnn: nn.Module, cnn_file: export.Exported) -> None:
    """The file takes batches and map sizes that the example did not have, and answers as the model does."""
    assert (cnn_file.exporter, cnn_file.opset, cnn_file.notes) == ("dynamo", OPSET, ())
    assert dims(cnn_file.onnx_bytes) == ["batch", 3, "input_dim2", "input_dim3"]
    assert dims(cnn_file.onnx_bytes, "output") == ["batch", 4]
    images = torch.randn(7, 3, 12, 10)
    with torch.no_grad():
        expected = copy.deepcopy(cnn).eval()(images)
    torch.testing.assert_close(run(cnn_file.onnx_bytes, input=images), expected, rtol=1e-4, atol=1e-4)


def test_the_model_is_left_as_it_was(tiny_cnn: type[nn.Module]) -> None:
    """Modes, gradients, weights, buffers, the attention fast path and the random generator survive an export."""
    model = Pooled().train()
    model.pool.eval()
    model.head.bias.requires_grad_(False)
    before = copy.deepcopy(model)
    state = torch.get_rng_state()
    export_onnx(model, workload_of(model, torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))))
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in before.parameters()]
    for (name, old), new in zip(before.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(old, new), name
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.equal(torch.get_rng_state(), state)


def test_global_pooling_gets_its_own_operator(cnn_file: export.Exported) -> None:
    """x.mean((2, 3)) becomes GlobalAveragePool and Flatten, which ONNX Runtime has an int8 kernel for."""
    kinds = operators(cnn_file.onnx_bytes)
    assert kinds[-3:] == ["GlobalAveragePool", "Flatten", "Gemm"]
    assert "ReduceMean" not in kinds


@pytest.mark.parametrize(
    ("shape", "axes", "keepdims", "pooled"),
    [
        (["n", 2, 4, 4], [2, 3], 0, 1),
        (["n", 2, 4, 4], [-1, -2], 1, 1),
        (["n", 2, 4, 4], [1, 2], 0, 0),
        (["n", 2, 4], [1, 2], 0, 0),
    ],
)
def test_only_means_over_whole_maps_are_pooled(shape: list[Any], axes: list[int], keepdims: int, pooled: int) -> None:
    """A mean over other axes, or of three-dimensional tensors, stays what it is; the numbers never change."""
    helper = onnx.helper
    rank = len(shape) if keepdims else len(shape) - 2
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=keepdims, name="mean")],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * rank)],
        [onnx.numpy_helper.from_array(np.array(axes, np.int64), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x = np.random.default_rng(0).normal(size=[3, *shape[1:]]).astype(np.float32)
    (before,) = open_session(model.SerializeToString()).run(None, {"x": x})
    assert pool_globally_(model) == pooled
    assert ("GlobalAveragePool" in {node.op_type for node in model.graph.node}) == bool(pooled)
    onnx.checker.check_model(model, full_check=True)
    (after,) = open_session(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


def test_names_lead_from_the_file_to_the_layers(cnn: nn.Module, cnn_file: export.Exported) -> None:
    """Weights keep their module path, folded BatchNorm included, and nodes are called like their layer."""
    graph = onnx.load_from_string(cnn_file.onnx_bytes).graph
    assert [node.name for node in graph.node][:4] == ["conv1", "relu_1", "layer1.0.conv1", "relu_2"]
    assert list(graph.node[2].input) == ["t2", "layer1.0.conv1.weight", "layer1.0.conv1.bias"]
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    state = cnn.state_dict()
    weights = [name for name in state if name.endswith("weight") and "bn" not in name]
    assert {name: shapes[name] for name in weights} == {name: tuple(state[name].shape) for name in weights}
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)


def test_the_file_tells_nothing_about_the_machine(cnn_file: export.Exported) -> None:
    """No stack traces, paths or doc strings are left in the bytes, and little beside the weights."""
    raw = cnn_file.onnx_bytes
    for leak in (str(ROOT), str(Path.home()), sys.prefix, os.getcwd(), "site-packages", ".py", "pkg.torch", "forward"):  # noqa: PTH109 - the string itself is looked for
        assert leak.encode() not in raw, leak
    weights = sum(len(tensor.raw_data) for tensor in onnx.load_from_string(raw).graph.initializer)
    # Each of the 30 nodes costs some 100 bytes of attributes and names.
    assert len(raw) - weights < 6000


def test_the_same_model_gives_the_same_bytes(cnn: nn.Module, cnn_file: export.Exported) -> None:
    """A second export in the same process, with other example inputs, is identical to the byte."""
    again = export_onnx(cnn, workload_of(cnn, torch.randn(10, 3, 8, 8)))
    assert again.onnx_bytes == cnn_file.onnx_bytes


@pytest.mark.slow
def test_another_process_gives_the_same_bytes() -> None:
    """Hash seeds and import order of another process leave no trace in the file."""
    code = (
        "import sys, hashlib, torch; sys.path.insert(0, sys.argv[1]); from test_export import *; torch.manual_seed(0); "
        "m = lived_in(Pooled()); w = workload_of(m, torch.randn(10, 3, 8, 8)); e = export_onnx(m, w); "
        "print(hashlib.sha256(e.onnx_bytes).hexdigest())"
    )
    digests = set()
    for seed in ("1", "2"):
        finished = subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert finished.stderr == ""
        digests.add(finished.stdout)
    torch.manual_seed(0)
    model = lived_in(Pooled())
    here = export_onnx(model, workload_of(model, torch.randn(10, 3, 8, 8)))
    assert digests == {hashlib.sha256(here.onnx_bytes).hexdigest() + "\n"}


def test_dict_inputs_and_outputs_keep_their_names() -> None:
    """Keywords become input names, keys output names, the logits are judged, and ids and mask share their length."""
    model = Keyed()
    inputs = {"ids": torch.randint(0, 20, (10, 6)), "mask": (torch.arange(6) < torch.randint(1, 7, (10, 1))).long()}
    file = export_onnx(model, workload_of(model, inputs)).onnx_bytes
    assert dims(file, "ids") == dims(file, "mask") == ["batch", "ids_dim1"]
    longer = {name: torch.cat([value, value], dim=1) for name, value in inputs.items()}
    assert [value.name for value in onnx.load_from_string(file).graph.output] == ["hidden", "logits"]
    with torch.no_grad():
        ((judged, _),) = predict_batches(file, [(longer, torch.zeros(20))])
        torch.testing.assert_close(judged, predict(model.eval(), longer), rtol=1e-4, atol=1e-5)


def test_an_lstm_takes_other_lengths() -> None:
    """The LSTM stays one LSTM operator and runs at lengths that the example did not have."""
    model = Recurrent(nn.LSTM)
    file = export_onnx(model, workload_of(model, torch.randn(10, 7, 5))).onnx_bytes
    assert operators(file).count("LSTM") == 1
    assert dims(file) == ["batch", "input_dim1", 5]
    other = torch.randn(4, 11, 5)
    with torch.no_grad():
        torch.testing.assert_close(run(file, input=other), model.eval()(other), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_other_recurrent_nets_take_other_lengths(kind: type[nn.RNNBase]) -> None:
    """The exporter unrolls nn.RNN at the length of the example; the file that comes out takes any all the same."""
    model = Recurrent(kind)
    exported = export_onnx(model, workload_of(model, torch.randn(10, 7, 5)))
    assert kind.__name__ in operators(exported.onnx_bytes)
    assert dims(exported.onnx_bytes) == ["batch", "input_dim1", 5]
    if kind is nn.RNN:
        assert exported.exporter == "torchscript"
        assert "dimension 1 of 'input' is fixed at 7" in exported.notes[0]


@pytest.mark.slow
def test_a_transformer_layer_exports_without_the_fast_path() -> None:
    """nn.TransformerEncoderLayer in eval mode exports, with weights under their names, for any length."""
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    exported = export_onnx(model, workload_of(model, torch.randn(10, 7, 16)))
    assert dims(exported.onnx_bytes) == ["batch", "input_dim1", 16]
    names = {tensor.name for tensor in onnx.load_from_string(exported.onnx_bytes).graph.initializer}
    assert {"self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"} <= names


@pytest.mark.slow
def test_a_hugging_face_model_exports() -> None:
    """BERT takes ids and mask by name, and the file gives the logits of its ModelOutput."""
    with warnings.catch_warnings():
        # transformers warns of its own deprecations at import.
        warnings.simplefilter("ignore")
        from transformers import BertConfig, BertForSequenceClassification

        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=50,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=16,
            )
        )
    inputs = {
        "input_ids": torch.randint(0, 50, (10, 9)),
        "attention_mask": (torch.arange(9) < torch.randint(3, 10, (10, 1))).long(),
    }
    exported = export_onnx(model, workload_of(model, inputs))
    assert dims(exported.onnx_bytes, "attention_mask") == ["batch", "input_ids_dim1"]
    assert dims(exported.onnx_bytes, "logits") == ["batch", 2]
    shorter = {name: value[:3, :5] for name, value in inputs.items()}
    with torch.no_grad():
        expected = model.eval()(**shorter).logits
    torch.testing.assert_close(run(exported.onnx_bytes, **shorter), expected, rtol=1e-3, atol=1e-4)


def test_a_branch_on_values_is_refused_by_name() -> None:
    """Tracing would freeze the branch of the example: refused, with the submodule, both errors and the way out."""
    model = Gated()
    pattern = (
        r"Gated could not be exported.*dynamo: .*data-dependent.*torchscript: it would freeze.*'gate' \(Branching\)"
    )
    with pytest.raises(ExportError, match=pattern) as caught:
        export_onnx(model, workload_of(model, torch.randn(10, 4)))
    assert "torch.where instead of if" in str(caught.value)


def test_a_fixed_batch_is_refused() -> None:
    """A batch size written into forward() is found at the other batch sizes, whichever exporter is asked."""
    with pytest.raises(ExportError, match=r"batch dimension of 'input' was frozen at 2.*shape \(1, 4\)"):
        export_onnx(Frozen(), workload_of(Frozen(), torch.randn(10, 4)))


def test_a_wrong_file_is_not_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose numbers differ by more than the tolerance is refused, though it is valid ONNX."""
    model = nn.Linear(4, 3)
    right = exporters._torchscript

    def wrong(task: Any, *, on_values: bool) -> onnx.ModelProto:
        proto = right(task, on_values=on_values)
        (weight,) = [tensor for tensor in proto.graph.initializer if tensor.name.endswith("weight")]
        weight.raw_data = (onnx.numpy_helper.to_array(weight) * np.float32(1.01)).tobytes()
        return proto

    monkeypatch.setattr(exporters, "_dynamo", lambda task, *, direct: (wrong(task, on_values=False), direct))
    monkeypatch.setattr(exporters, "_torchscript", wrong)
    with pytest.raises(ExportError, match=r"differs from torch by 0\.0\d+ of the output's scale, allowed is 0\.001"):
        export_onnx(model, workload_of(model, torch.randn(10, 4)))


class Chaotic(nn.Module):
    """Rounding grows to all of the output: the logistic map, again and again."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        y = x.sigmoid()
        for _ in range(self.steps):
            y = 3.99 * y * (1 - y)
        return y


def test_a_model_that_amplifies_rounding_is_told_so() -> None:
    """The refusal names the cause where the model itself answers otherwise for all but the same inputs."""
    with pytest.raises(
        ExportError, match=r"Chaotic amplifies rounding: inputs that grow by 1e-06 of themselves change"
    ):
        export_onnx(Chaotic(60), workload_of(Chaotic(60), torch.randn(10, 4)))
    assert export_onnx(Chaotic(3), workload_of(Chaotic(3), torch.randn(10, 4))).onnx_bytes


def test_the_other_exporter_steps_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch's current exporter fails, the TorchScript one is tried, and the note says why."""

    def broken(*_: Any, **__: Any) -> onnx.ModelProto:
        raise RuntimeError("no such operator\nand ten pages of graph")

    monkeypatch.setattr(exporters, "_dynamo", broken)
    model = lived_in(Pooled())
    exported = export_onnx(model, workload_of(model, torch.randn(10, 3, 8, 8)))
    assert exported.exporter == "torchscript"
    assert re.search(r"the current one: RuntimeError: no such operator$", exported.notes[0])
    names = {tensor.name for tensor in onnx.load_from_string(exported.onnx_bytes).graph.initializer}
    assert {"features.0.weight", "features.0.bias", "features.3.0.weight", "head.weight"} <= names
    assert "GlobalAveragePool" in operators(exported.onnx_bytes)


def test_nan_outputs_are_refused() -> None:
    """A model that gives NaN is refused before any exporter runs: onnx.checker would pass it."""
    with pytest.raises(ExportError, match=r"Linear gives NaN for calibration inputs of shape \(1, 4\)"):
        export_onnx(nn.Linear(4, 3), workload_of(nn.Linear(4, 3), torch.full((10, 4), torch.nan)))


def test_an_onnx_module_is_its_own_file(cnn_file: export.Exported) -> None:
    """What already is an ONNX file comes back to the byte."""
    module = OnnxModule(cnn_file.onnx_bytes)
    exported = export_onnx(module, workload_of(module, torch.randn(10, 3, 8, 8)))
    assert (exported.exporter, exported.onnx_bytes) == ("onnx", cnn_file.onnx_bytes)


def test_what_does_not_fit_one_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights beyond one file's limit are refused with both sizes, before any work."""
    monkeypatch.setattr(export, "MAX_BYTES", 50)
    with pytest.raises(ExportError, match=r"Linear holds 0\.0 GB of weights, and one ONNX file holds at most 0\.0 GB"):
        export_onnx(nn.Linear(4, 3), workload_of(nn.Linear(4, 3), torch.randn(10, 4)))


class PooledTo(nn.Module):
    """Pools any length to four places, which no exporter can write for a length that is not known."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(nn.functional.adaptive_max_pool1d(x, 4).flatten(1))


def test_where_no_file_of_free_lengths_passes_only_the_batch_is_free() -> None:
    """The length of the example is fixed, and the notes say so and why."""
    model = PooledTo()
    x = torch.randn(10, 3, 12)
    exported = export_onnx(model, workload_of(model, x))
    assert exported.exporter == "dynamo"
    assert dims(exported.onnx_bytes) == ["batch", 3, 12]
    fixed, why = exported.notes
    assert fixed == "dimension 2 of 'input' is fixed at 12, though the model takes other lengths"
    assert re.match(r"with free sizes it could not be written \(dynamo: .*; torchscript: .*adaptive_max_pool1d", why)
    with torch.no_grad():
        torch.testing.assert_close(run(exported.onnx_bytes, input=x[:7]), model(x[:7]))
