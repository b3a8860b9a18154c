"""Wrong uses, some eighty of them: each ends in a message that names what was wanted, what was got and the way out."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from sklearn.metrics import accuracy_score
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from typer.testing import CliRunner

from compressor.budget import Budget
from compressor.cli.app import app
from compressor.running.pipeline import Pipeline
from compressor.running.preflight import check_workload
from compressor.stages import Distill, FineTune, PruneChannels, Quantize
from compressor.target import Target
from compressor.workload import Workload
from workbench import ROOT

X, Y = torch.randn(40, 3), torch.arange(40) % 4
NET = nn.Linear(3, 4)


def loader(features=X, targets=Y, **settings):
    return DataLoader(TensorDataset(features, targets), batch_size=8, **settings)


def loaders(model=NET, **given):
    """A workload of loaders, checked as a run does before any work."""
    stages = given.pop("stages", ())
    known = {"train": loader(), "validation": loader(), "test": loader()} | given
    return check_workload(Workload.from_loaders(model, **known), stages)


def datasets(model=NET, data=(X, Y), **given):
    """A workload of one pair for all sets, checked as a run does before any work."""
    stages = given.pop("stages", ())
    known = {"train": data, "validation": data, "test": data} | given
    return check_workload(Workload.from_datasets(model, **known), stages)


def by_hand(**given):
    """A workload whose fields are all said."""
    known = {name: [(X, Y)] for name in ("train", "calibration", "validation", "test")}
    fields = {"name": "net", "model": NET, "example_inputs": X[:2], "loss": F.cross_entropy, "metric": "accuracy"}
    return check_workload(Workload(**known, **{**fields, **given}))


def typed(*arguments: str) -> None:
    """Raises what the command says where it refuses; a traceback is no message."""
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    if result.exit_code:
        raise SystemExit(f"{result.exit_code}: {' '.join(result.output.split())}")


class Stream(IterableDataset):
    def __iter__(self):
        return zip(X, Y, strict=True)


class Net(nn.Module):
    """Makes of a linear layer's output whatever it is told."""

    def __init__(self, select: Callable = lambda out: out, width: int = 4) -> None:
        super().__init__()
        self.layer, self.select = nn.Linear(3, width), select

    def forward(self, x):
        return self.select(self.layer(x))


def broken(value: float) -> nn.Module:
    model = nn.Linear(3, 4)
    model.weight.data[0, 0] = value
    return model


def heads(out):
    return {"kind": out, "depth": out.sum(1)}


USES = {
    "a class for a model": (
        lambda: datasets(Net),
        r"must be a torch.nn.Module, got its class; make one of it",
    ),
    "a state dict for a model": (
        lambda: datasets(NET.state_dict()),
        r"must be a torch.nn.Module, got OrderedDict; load the weights",
    ),
    "a path for a model": (
        lambda: datasets("model.pt"),
        r"must be a torch.nn.Module, got str; load the weights",
    ),
    "weights that are NaN": (
        lambda: datasets(broken(float("nan"))),
        r"must be finite, got NaN or Inf in weight \(1 of 12\); load a checkpoint",
    ),
    "a model for other inputs": (
        lambda: datasets(nn.Linear(7, 4)),
        r"does not take example_inputs: float32 \(2, 3\).*Give inputs of the shape",
    ),
    "a model with too few outputs": (
        lambda: datasets(nn.Linear(3, 2)),
        r"labels from 0 to 3, and the model has 2 outputs.*give the model 4 outputs",
    ),
    "a model that gives nothing": (
        lambda: datasets(Net(lambda out: None)),
        r"must return a tensor.*got NoneType\. Pass a module that returns",
    ),
    "a model that gives a list for each sample": (
        lambda: datasets(Net(lambda out: [{"boxes": row[None]} for row in out])),
        r"fixed number of outputs, a row for every sample in each\. Pass a module",
    ),
    "a model that draws in eval mode": (
        lambda: datasets(Net(lambda out: F.dropout(out, 0.4))),
        r"same output twice.*draws random numbers.*Pass training=self.training",
    ),
    "a model that averages the batch": (
        lambda: datasets(Net(lambda out: out.mean(0))),
        r"one row for each of the 2 samples.*got shape \(4,\); batches come first",
    ),
    "a generator for a loader": (
        lambda: loaders(train=(pair for pair in [(X, Y)])),
        r"a generator, an iterator.*give the function.*train=read instead",
    ),
    "arrays for a loader": (
        lambda: loaders(train=(X, Y)),
        r"iterable of batches, and a pair of Tensors.*use Workload.from_datasets",
    ),
    "a dataset for a loader": (
        lambda: loaders(train=TensorDataset(X, Y)),
        r"iterable of batches, and a TensorDataset.*DataLoader\(train",
    ),
    "all sets at once": (
        lambda: loaders(train={"train": [(X, Y)], "test": [(X, Y)]}),
        r"iterable of batches, got a dict of 'train', 'test'; give one",
    ),
    "a path for a loader": (
        lambda: loaders(train="train.csv"),
        r"iterable of batches, got the text 'train.csv'; read the file",
    ),
    "a number for a loader": (
        lambda: loaders(test=5),
        r"iterable of batches.*got a int; use a DataLoader",
    ),
    "a class for a loader": (
        lambda: loaders(train=DataLoader),
        r"iterable of batches.*got the class DataLoader; use a DataLoader",
    ),
    "no batches": (
        lambda: loaders(train=[]),
        r"must have batches, got none; give it samples",
    ),
    "no samples in a batch": (
        lambda: loaders(train=[(X[:0], Y[:0])]),
        r"must hold samples, got none; leave empty batches out",
    ),
    "inputs without targets": (
        lambda: loaders(train=[X]),
        r"must be \(inputs, targets\).*got Tensor.*collate_fn",
    ),
    "a dict without labels": (
        lambda: loaders(train=[{"x": X, "y": Y}]),
        r"needs one of \('labels'.*got the keys \['x', 'y'\].*collate_fn",
    ),
    "texts in a batch": (
        lambda: loaders(train=[(["a", "b"], Y[:2])]),
        r"of tensors or arrays, and holds str; convert it",
    ),
    "a function that fails": (
        lambda: loaders(train=lambda: 1 / 0),
        r"cannot be read: ZeroDivisionError.*look at what",
    ),
    "a stream without validation": (
        lambda: loaders(train=DataLoader(Stream(), batch_size=8), validation=None),
        r"validation is missing.*a DataLoader.*Give validation=loader",
    ),
    "one batch to hold out of": (
        lambda: loaders(train=[(X, Y)], validation=None),
        r"train has 1 batches.*give validation=loader",
    ),
    "three things in a batch": (
        lambda: loaders(train=[(X, Y, torch.ones(40))]),
        r"takes 2 positional arguments.*batch of 3 is taken for 2 inputs and a target.*Mapped\(loader",
    ),
    "validation of another form": (
        lambda: loaders(validation=[(X.reshape(40, 3, 1), Y)]),
        r"must have the form.*float32 \(2, 3\); got float32 \(40, 3, 1\)\. Convert them",
    ),
    "as many inputs as not targets": (
        lambda: datasets(data=(X, Y[:7])),
        r"same number of samples, got \[7, 40\]; give one for each",
    ),
    "no samples": (
        lambda: datasets(data=(X[:0], Y[:0])),
        r"train has no samples.*give it some",
    ),
    "a stream for a dataset": (
        lambda: datasets(train=iter([])),
        r"needs len\(\) and indexing.*got list_iterator.*use Workload.from_loaders",
    ),
    "a percentage to hold out": (
        lambda: datasets(validation=None, validation_fraction=20),
        r"fraction of train held out, in \(0, 1\); got 20; did you mean 0.2\?",
    ),
    "labels that begin at 1": (
        lambda: datasets(data=(X, Y + 1)),
        r"labels from 1 to 4, and the model has 4 outputs.*Renumber the labels",
    ),
    "labels one too deep": (
        lambda: datasets(data=(X, Y[:, None])),
        r"outputs \(40, 4\) and targets \(40, 1\); use targets.squeeze\(1\)",
    ),
    "one-hot targets for accuracy": (
        lambda: datasets(data=(X, F.one_hot(Y, 4))),
        r"class indices.*targets \(40, 4\); of a share for each class, targets.argmax\(1\)",
    ),
    "numbers for classes": (
        lambda: datasets(data=(X, torch.randn(40))),
        r"wants class indices, got targets of torch.float32; use targets.long",
    ),
    "one class alone": (
        lambda: datasets(data=(X, torch.zeros(40, dtype=torch.long))),
        r"holds the class 0 alone, and the model has 4 outputs.*Give samples of every class",
    ),
    "columns against a row": (
        lambda: datasets(nn.Linear(3, 1), data=(X, torch.randn(40)), metric="mse"),
        r"outputs \(40, 1\) and targets \(40,\); use targets.unsqueeze\(1\)",
    ),
    "NaN in the inputs": (
        lambda: datasets(data=(X.log(), Y)),
        r"gives NaN for example_inputs.*check the inputs",
    ),
    "whole numbers for a float model": (
        lambda: datasets(data=((100 * X).long(), Y)),
        r"does not take example_inputs: int64 \(2, 3\).*Give inputs",
    ),
    "batches of one for BatchNorm": (
        lambda: loaders(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), train=[(X[:1], Y[:1]), (X[:1], Y[:1] + 1)]),
        r"have 1 sample each.*Set another batch_size",
    ),
    "a misspelt metric": (
        lambda: datasets(metric="acuracy"),
        r"must be one of accuracy.*got 'acuracy'; did you mean 'accuracy'\?",
    ),
    "a number for a metric": (
        lambda: datasets(metric=0.9),
        r"a name such as 'accuracy', a Metric, or a function.*got float 0.9",
    ),
    "a class for a metric": (
        lambda: datasets(metric=nn.MSELoss),
        r"must be a name.*got the class MSELoss; make an object of it",
    ),
    "a metric that returns nothing": (
        lambda: datasets(metric=lambda outputs, targets: None),
        r"one number, or one row a sample.*got None; return the number",
    ),
    "a metric that returns a dict": (
        lambda: datasets(metric=lambda outputs, targets: {"f1": 1.0}),
        r"one number, or one row a sample.*got dict; return the number",
    ),
    "a metric of one argument": (
        lambda: datasets(metric=lambda outputs: 1.0),
        r"must take \(outputs, targets\) and fails.*1 positional argument but 2.*lambda outputs, targets",
    ),
    "a metric with rows of its own": (
        lambda: datasets(metric=lambda outputs, targets: torch.ones(3)),
        r"one row for each of the 32 samples, got the shape \(3,\); average",
    ),
    "a metric for answers, not logits": (
        lambda: datasets(metric=accuracy_score),
        r"must take \(outputs, targets\) and fails.*ValueError.*outputs.argmax\(1\)",
    ),
    "top of none": (
        lambda: datasets(metric="top0"),
        r"k counts the answers that are allowed, at least 1; got 0",
    ),
    "boxes without a loss": (
        lambda: datasets(metric="map"),
        r"loss must be given with the metric map.*give a function",
    ),
    "labels that are classes": (
        lambda: datasets(metric="multilabel_f1"),
        r"one shape, got outputs \(40, 4\) and targets \(40,\); give one target for each",
    ),
    "a class for a loss": (
        lambda: datasets(loss=nn.CrossEntropyLoss),
        r"got the class CrossEntropyLoss; make an object of it: loss=CrossEntropyLoss\(\)",
    ),
    "a name for a loss": (
        lambda: datasets(loss="cross_entropy"),
        r"a function of \(outputs, targets\), got str 'cross_entropy'; give the function",
    ),
    "a loss for each sample": (
        lambda: datasets(loss=lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none")),
        r"must be one number, got shape \(40,\); give the mean",
    ),
    "a loss without a gradient": (
        lambda: datasets(
            loss=lambda outputs, targets: F.cross_entropy(outputs, targets).detach(), stages=[FineTune(epochs=1)]
        ),
        r"depends on no weight by a gradient.*compute it by differentiable operators",
    ),
    "a loss that is infinite": (
        lambda: datasets(loss=lambda outputs, targets: outputs.sum() / 0),
        r"must be finite, got -?inf; check the scale",
    ),
    "a function for a metric, by hand": (
        lambda: by_hand(metric=lambda outputs, targets: 1.0),
        r"must be a Metric or a name such as 'accuracy' here, got a function; Workload.from_loaders takes one",
    ),
    "a number for a metric, by hand": (lambda: by_hand(metric=0.9), r"must be a name.*got float 0.9"),
    "a class for a loss, by hand": (lambda: by_hand(loss=nn.MSELoss), r"got the class MSELoss; make an object of it"),
    "a misspelt output": (
        lambda: datasets(Net(heads), judge="kinds"),
        r"got 'kinds'; it gives 'kind', 'depth'\. Did you mean 'kind'\?",
    ),
    "a number for an output": (
        lambda: datasets(Net(heads), judge=1),
        r"the name of an output, or a function.*got int 1; the third of a tuple is judge='2'",
    ),
    "a judge that keeps both": (
        lambda: datasets(Net(heads), judge=lambda out: (out["kind"], out["depth"])),
        r"must make one tensor.*got tuple; the outputs are kind, depth",
    ),
    "a misspelt argument": (
        lambda: datasets(free_size="batch"),
        r"got 'free_size'; did you mean 'free_sizes'\?",
    ),
    "free sizes of an input that is not there": (
        lambda: datasets(free_sizes={"pixels": (1,)}),
        r"names the input 'pixels', and the inputs are input; name one of them",
    ),
    "free sizes in other words": (
        lambda: datasets(free_sizes="none"),
        r"or dimensions by input, such as .*got 'none'",
    ),
    "no time to export": (
        lambda: datasets(export_seconds=0),
        r"CPU time that one export may take, above 0; got 0; leave it out",
    ),
    "other inputs without a tuple": (
        lambda: datasets(other_inputs=X),
        r"got Tensor; put them into a tuple",
    ),
    "no stages": (
        lambda: Pipeline([]),
        r"needs at least one stage, such as Quantize\(\)",
    ),
    "a stage that is a class": (
        lambda: Pipeline([Quantize]),
        r"is not a stage.*it is a class, call it",
    ),
    "training after integers": (
        lambda: Pipeline([Quantize(), FineTune(epochs=1)]),
        r"fine_tune cannot follow quantize.*move quantize to the end",
    ),
    "points for a fraction": (
        lambda: Budget(max_drop=2),
        r"in \[0, 1\); got 2; did you mean 0.02\?",
    ),
    "percent for a fraction": (
        lambda: PruneChannels(remove=30),
        r"in \[0, 1\); got 30; did you mean 0.3\?",
    ),
    "a name for a value": (
        lambda: Quantize(weights="int8"),
        r"weights is one of Symmetric\(\), Asymmetric\(\).*got 'int8'",
    ),
    "no epoch": (
        lambda: Distill(epochs=0),
        r"epochs counts the passes.*at least 1; got 0",
    ),
    "a batch of none": (
        lambda: Target(batch_size=0),
        r"number of samples per call, at least 1; got 0",
    ),
    "a recipe that is not there": (
        lambda: typed("run", "int9", "-w", "digits", "--out", "o"),
        r"2: error: no recipe 'int9'; did you mean 'int8'\?",
    ),
    "a stage that is not there": (
        lambda: typed("run", "odd.yaml", "-w", "digits", "--out", "o"),
        r"2: error: odd.yaml:1: unknown stage 'quantise'; did you mean 'quantize'\?",
    ),
    "a number type for a scheme": (
        lambda: typed("run", "int8", "--set", "stages.0.weights=int4", "-w", "digits", "--out", "o"),
        r"2: error: .*unknown value.*'int4'; 4 bits are written weights: \{symmetric: \{bits: 4\}\}",
    ),
    "a setting one level too high": (
        lambda: typed("run", "int8", "--set", "stages.0.bits=4", "-w", "digits", "--out", "o"),
        r"2: error: .*has no 'bits', but its weights has: write weights",
    ),
    "a file for a module": (
        lambda: typed("run", "int8", "-w", "wl.py:good", "--out", "o"),
        r"2: error: .*got 'wl.py:good'; did you mean 'wl:good'\?",
    ),
    "a workload that is not there": (
        lambda: typed("run", "int8", "-w", "digit", "--out", "o"),
        r"2: error: .*got 'digit'; did you mean 'digits'\?",
    ),
    "a function that returns nothing": (
        lambda: typed("run", "int8", "-w", "mine:nothing", "--out", "o"),
        r"2: error: .*must return a compressor.Workload, it returned NoneType; let it end with return",
    ),
    "a file that is no ONNX": (
        lambda: typed("run", "int8", "-w", "text.onnx", "--out", "o"),
        r"2: error: .*text.onnx is no ONNX file, or is damaged.*export it again",
    ),
    "arrays without inputs": (
        lambda: typed("run", "int8", "-w", "real.onnx:data.npz", "--out", "o"),
        r"2: error: .*has the arrays targets and lacks x.*wanted are",
    ),
    "a folder of somebody else's": (
        lambda: typed("run", "int8", "-w", "mine:tiny", "--out", "taken"),
        r"1: error: taken holds report.html, which no run wrote.*move it away",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has lying about: a workload, a recipe, files that are not what they are called, a foreign report."""
    made = tmp_path_factory.mktemp("user")
    (made / "mine.py").write_text(
        "from workbench.tiny import TinyResNet, make_workload\n\n\ndef nothing():\n    pass\n\n\ndef tiny():\n"
        "    return make_workload(TinyResNet(width=8).eval(), train=64, test=32, batch_size=16)\n"
    )
    (made / "odd.yaml").write_text("stages: [quantise]\n")
    (made / "text.onnx").write_text("no ONNX")
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("x", "output")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["output"])], "real", shapes[:1], shapes[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), made / "real.onnx")
    np.savez(made / "data.npz", targets=np.zeros(30))
    (made / "taken").mkdir()
    (made / "taken" / "report.html").write_text("mine")
    return made


def test_there_are_sixty_and_more() -> None:
    """Of every kind: models, data, metrics, losses, judges, settings, stages, the command line."""
    assert len(USES) >= 60


@pytest.mark.filterwarnings("ignore::compressor.given.notices.WorkloadWarning")
@pytest.mark.parametrize("use", USES)
def test_a_wrong_use_is_answered(use: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an error that people can read, in words, before any work, and never by a number."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    do, says = USES[use]
    with pytest.raises((ValueError, TypeError, SystemExit), match=says):
        do()
