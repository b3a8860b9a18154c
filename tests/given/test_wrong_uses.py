"""More than a hundred wrong uses: each ends in a message that names what was wanted, what was got and the way out."""

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
from compressor.comparing.comparison import compare
from compressor.errors import WrongUseError
from compressor.running.pipeline import Pipeline
from compressor.running.preflight import check_workload
from compressor.stages import Distill, FineTune, PruneChannels, Quantize, Symmetric
from compressor.target import Target
from compressor.workload import Workload
from workbench import ROOT

X, Y = torch.randn(40, 3), torch.arange(40) % 4
NET = nn.Linear(3, 4)
CONVOLUTION = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


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


WEIGHTED = [(X, {"labels": Y, "weight": torch.ones(40)})]


def series(*lengths):
    return [(torch.randn(8, length, 3), torch.randn(8, length, 1)) for length in lengths]


def whole_error(outputs, targets):
    return (outputs - targets).abs().mean()


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
        r"does not take example_inputs: int64 \(2, 3\).*convert the inputs as in its training, x.float\(\)",
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
    "a metric that draws": (
        lambda: datasets(metric=lambda outputs, targets: float(torch.rand(()))),
        r"must give the same again for the same outputs and targets, got another, 0\.\d+ and then 0\.\d+: it draws",
    ),
    "a metric that adds up": (
        lambda: datasets(metric=lambda outputs, targets, seen=[]: (seen.append(outputs.argmax(1)), len(seen))[1]),
        r"got another, 1 and then 3: .*adds up what it was shown before. Let it compute from its arguments alone",
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
    "float shares for classes": (
        lambda: datasets(data=(X, F.one_hot(Y, 4).float())),
        r"wants class indices, got targets of torch.float32; of a share for each class, targets.argmax\(1\)",
    ),
    "truth values for classes": (
        lambda: loaders(train=[(X, Y > 1)]),
        r"wants class indices, got targets of torch.bool; use targets.long\(\)",
    ),
    "one logit for two classes": (
        lambda: datasets(nn.Linear(3, 1), data=(X, Y % 2)),
        r"labels from 0 to 1, and the model has 1 outputs.*logit of a label.*metric='label_accuracy'",
    ),
    "texts for labels": (
        lambda: datasets(data=(X.numpy(), np.array(["cat", "dog"] * 20))),
        r"targets of train must be numbers, got texts such as 'cat'; number the classes.*return_inverse=True",
    ),
    "gaps in a table": (
        lambda: datasets(data=(np.array([[1.0, None, 2.0]] * 40, dtype=object), Y)),
        r"inputs of train must be numbers, got an array of object that holds float; fill gaps",
    ),
    "rows of several lengths": (
        lambda: datasets(data=([[1.0, 2.0], [3.0]], [0, 1])),
        r"inputs of train must have rows of one length.*pad them",
    ),
    "inputs alone": (
        lambda: datasets(data=X),
        r"train must be a pair \(inputs, targets\), got a Tensor alone; write train=\(inputs, targets\), or",
    ),
    "three arrays": (
        lambda: datasets(data=(X, X, Y)),
        r"got a tuple of 3; several inputs share a tuple: train=\(\(first, second\), targets\)",
    ),
    "two arrays in a list": (
        lambda: datasets(data=[X, Y]),
        r"got a list of two; write a tuple: train=\(x, y\)",
    ),
    "arrays in a dict": (
        lambda: datasets(data={"x": X, "y": Y}),
        r"got a dict of 'x', 'y'; write train=\(data\['x'\], data\['y'\]\)",
    ),
    "the name of a set": (
        lambda: datasets(validation="test"),
        r"validation must be a pair.*got the text 'test'; read the file first",
    ),
    "one sample without its batch": (
        lambda: datasets(test=(X[0], Y[0])),
        r"targets of test must have one row for each sample, got a single torch.int64; give all samples",
    ),
    "samples of texts": (
        lambda: datasets(data=[(X[number], "cat") for number in range(40)]),
        r"a sample of train must be of tensors.*holds the text 'cat'; number the classes in the dataset",
    ),
    "samples without a target": (
        lambda: datasets(data=[{"x": X[number]} for number in range(40)]),
        r"a sample of train must be \(input, target\).*got the keys \['x'\].*convert it in the dataset",
    ),
    "sparse inputs": (
        lambda: datasets(data=(X.to_sparse(), Y)),
        r"inputs of train must be dense, got torch.sparse_coo; convert them with to_dense\(\)",
    ),
    "a name for a transform": (
        lambda: datasets(transform="normalize"),
        r"transform must be a function of a batch's inputs, got str 'normalize'; give the function itself",
    ),
    "nothing to calibrate with": (
        lambda: datasets(calibration_samples=0),
        r"calibration_samples counts the samples of train that calibrate, at least 1; got 0",
    ),
    "channels last": (
        lambda: datasets(CONVOLUTION, data=(torch.rand(40, 8, 8, 3), Y)),
        r"float32 \(2, 8, 8, 3\).*The channels seem to come last.*x.permute\(0, 3, 1, 2\)",
    ),
    "images of 8 bits": (
        lambda: datasets(CONVOLUTION, data=(torch.zeros(40, 3, 8, 8, dtype=torch.uint8), Y)),
        r"uint8 \(2, 3, 8, 8\).*convert the inputs as in its training, x.float\(\), x.float\(\) / 255",
    ),
    "images without channels": (
        lambda: datasets(CONVOLUTION, data=(torch.rand(40, 8, 8), Y)),
        r"float32 \(2, 8, 8\).*Images are \(batch, channels, height, width\): x.unsqueeze\(1\)",
    ),
    "keys that forward has not": (
        lambda: loaders(train=[{"image": X, "label": Y}]),
        r"unexpected keyword argument 'image'.*gives the arguments of forward by name, and it takes input: rename",
    ),
    "halves for a model in float32": (
        lambda: datasets(data=(X.half(), Y)),
        r"float16 \(2, 3\).*It computes in float32: convert the inputs, x.float\(\)",
    ),
    "one sample to test on": (
        lambda: datasets(test=(X[:1], Y[:1])),
        r"test holds 1 sample, of whose score no interval can be told; give at least 2",
    ),
    "more answers than classes": (
        lambda: datasets(metric="top5"),
        r"top5 of 4 classes is always right; ask for fewer",
    ),
    "maps of one label": (
        lambda: datasets(metric="miou"),
        r"miou judges maps.*got \(40, 4\) and \(40,\); for one label a sample, use accuracy or f1",
    ),
    "numbers that are all equal": (
        lambda: datasets(nn.Linear(3, 1), data=(X, torch.ones(40, 1)), metric="r2"),
        r"must be finite, got nan; all of its targets are 1, of which nothing can be told: give others",
    ),
    "log-probabilities that are none": (
        lambda: datasets(loss=F.nll_loss),
        r"nll_loss takes log-probabilities.*use torch.nn.functional.cross_entropy, or end the model with log_softmax",
    ),
    "a stage alone": (
        lambda: Pipeline(Quantize()),
        r"takes a list of stages, got a Quantize alone; write Pipeline\(\[Quantize\(...\)\]\)",
    ),
    "a recipe's name for stages": (
        lambda: Pipeline("int8"),
        r"takes stages, got the text 'int8'; for a recipe: Pipeline.from_recipe\(Recipe.load\('int8'\)\)",
    ),
    "a model for a workload": (
        lambda: Pipeline([Quantize()]).run(NET),
        r"run takes a Workload, got Linear; make one: Workload.from_datasets",
    ),
    "a number for a target": (
        lambda: Pipeline([Quantize()]).run(datasets(), target=4),
        r"target is a Target, got 4; write Target\(batch_size=1, threads=1\)",
    ),
    "a text for a seed": (
        lambda: Pipeline([Quantize()]).run(datasets(), seed="0"),
        r"seed is a whole number, at least 0; got '0'",
    ),
    "bits in words": (
        lambda: Symmetric(bits="8"),
        r"bits is the width of the integers, from 2 to 16; got '8'",
    ),
    "a recipe alone to compare": (
        lambda: compare("int8", datasets(), out="o"),
        r"takes a list of recipes, got 'int8' alone; write \['int8'\]",
    ),
    "stages to compare": (
        lambda: compare([Quantize()], datasets(), out="o"),
        r"takes recipes: names, files.*got a Quantize; for stages, write Pipeline",
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
    "a function of two arguments": (
        lambda: typed("run", "int8", "-w", "mine:two", "--out", "o"),
        r"2: error: .*mine:two must be callable without arguments, and needs a, b; give them defaults",
    ),
    "a number for a function": (
        lambda: typed("run", "int8", "-w", "mine:number", "--out", "o"),
        r"2: error: .*mine.number is no function, but of type int; it has two, nothing, tiny",
    ),
    "a path for a module": (
        lambda: typed("run", "int8", "-w", str(Path("mine.py").absolute()) + ":tiny", "--out", "o"),
        r"2: error: .*as in Python's imports.*did you mean 'mine:tiny'\?",
    ),
    "a path elsewhere for a module": (
        lambda: typed("run", "int8", "-w", "/elsewhere/wl.py:tiny", "--out", "o"),
        r"2: error: .*run it in the folder /elsewhere, as wl:tiny",
    ),
    "a value that is empty": (
        lambda: typed("run", "int8", "--set", "budget.max_drop=", "-w", "digits", "--out", "o"),
        r"2: error: .*budget.max_drop is given no value; write max_drop=null where none is meant",
    ),
    "a limit outside of the budget": (
        lambda: typed("run", "int8", "--set", "max_drop=0.02", "-w", "digits", "--out", "o"),
        r"2: error: .*no 'max_drop'; it belongs into the budget: budget: \{max_drop: 0.02\}",
    ),
    "a key one level too deep": (
        lambda: typed("run", "deep.yaml", "-w", "digits", "--out", "o"),
        r"2: error: .*no 'target'; threads stands at the top: threads: 2",
    ),
    "a rate beside the optimizer": (
        lambda: FineTune(epochs=1, lr=0.1),
        r"FineTune has no 'lr': the rate is the optimizer's; write optimizer=SGD\(rate=0.1\)",
    ),
    "a function for a model": (
        lambda: datasets(lambda x: x),
        r"must be a torch.nn.Module, got function; call it in the forward of one",
    ),
    "a folder without a name": (
        lambda: typed("run", "int8", "-w", "mine:tiny", "--out", ""),
        r"2: .*it is empty, and a folder is wanted, such as runs/first",
    ),
    "samples that nobody put together": (
        lambda: loaders(train=[[{"x": x, "label": y} for x, y in zip(X, Y, strict=True)]]),
        r"got a list of 40 samples, each a dict; put them together: torch.utils.data.default_collate",
    ),
    "pairs that nobody put together": (
        lambda: loaders(train=[list(zip(X, Y, strict=True))]),
        r"got a list of 40 samples, each a tuple; put them together",
    ),
    "sparse batches": (
        lambda: loaders(train=[(X.to_sparse(), Y)]),
        r"must be of dense tensors, got torch.sparse_coo; convert them with to_dense\(\)",
    ),
    "NaN in a late batch": (
        lambda: loaders(test=[(X, Y), (X / 0 * 0, Y)]),
        r"gives NaN for batch 1 of test, whose inputs hold NaN or Inf: .*check the inputs for NaN",
    ),
    "a stage without its list": (
        lambda: typed("run", "int8", "--set", "stages=quantize", "-w", "digits", "--out", "o"),
        r"2: error: .*stages must be a list, got 'quantize'; write stages: \[quantize\]",
    ),
    "a point for a fraction": (
        lambda: typed("run", "int8", "--set", "budget.max_drop=1", "-w", "digits", "--out", "o"),
        r"2: error: .*in \[0, 1\); got 1.0; did you mean 0.01\?",
    ),
    "a fraction in percent": (
        lambda: typed("run", "int8", "--set", "budget.max_drop=2%", "-w", "digits", "--out", "o"),
        r"2: error: .*must be a number, got '2%'; did you mean 0.02\?",
    ),
    "a fraction in percent, in Python": (lambda: Budget(max_drop="2 %"), r"got '2 %'; did you mean 0.02\?"),
    "bytes with a unit": (
        lambda: typed("run", "int8", "--set", "budget.max_size_bytes=1.5MiB", "-w", "digits", "--out", "o"),
        r"2: error: .*got '1.5MiB'; did you mean 1572864\?",
    ),
    "a time with a unit": (
        lambda: typed("run", "int8", "--set", "budget.max_latency_ms=2 s", "-w", "digits", "--out", "o"),
        r"2: error: .*got '2 s'; did you mean 2000\?",
    ),
    "a metric for all of several targets": (
        lambda: loaders(
            **dict.fromkeys(("train", "validation", "test"), WEIGHTED),
            metric=lambda outputs, targets: (outputs.argmax(1) == targets["labels"]).float(),
        ),
        r"Of several targets a metric sees the one that is judged by, the 'labels' one, and the loss sees all",
    ),
    "a loss for one of several targets": (
        lambda: loaders(
            **dict.fromkeys(("train", "validation", "test"), WEIGHTED),
            loss=F.cross_entropy,
        ),
        r"targets \{labels: int64 \(40,\), weight: float32 \(40,\)\}, fails.*let it take what it needs of them",
    ),
    "a score of all numbers of two lengths": (
        lambda: loaders(nn.Linear(3, 1), **dict.fromkeys(("train", "validation", "test"), series(5, 7)), metric="r2"),
        r"validation has batches of two sizes: the metric r2 .* keeps 10 and 14 numbers.*pad the batches to one length",
    ),
    "a function of all samples of two lengths": (
        lambda: loaders(
            nn.Linear(3, 1), **dict.fromkeys(("train", "validation", "test"), series(5, 7)), metric=whole_error
        ),
        r"validation has batches of two sizes: the metric whole_error .*pad the batches to one length",
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
    "a module without a function": (
        lambda: typed("run", "int8", "-w", "mine.py", "--out", "o"),
        r"2: error: .*got 'mine.py' without a function; mine.py has mine:two, mine:nothing, mine:tiny",
    ),
    "a model for a function": (
        lambda: typed("run", "int8", "-w", "mine:model", "--out", "o"),
        r"2: error: .*mine:model is a Linear, a model without data; write a function that returns",
    ),
    "classes stored as numbers": (
        lambda: typed("run", "int8", "-w", "real.onnx:floats.npz", "--out", "o"),
        r"2: error: .*whole numbers of type float32.*the file gives 3 numbers.*targets.astype\(numpy.int64\)",
    ),
    "classes marked by a 1": (
        lambda: typed("run", "int8", "-w", "real.onnx:marked.npz", "--out", "o"),
        r"2: error: .*a single 1 among zeros.*targets.argmax\(1\), or take them as numbers with --metric mse",
    ),
    "training for a file": (
        lambda: typed("run", "distill_only", "-w", "real.onnx:whole.npz", "--out", "o"),
        r"error: distill needs the layers of a torch model, and this one is an ONNX file; quantize and",
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
        "from torch import nn\n\nfrom workbench.tiny import TinyResNet, make_workload\n\nmodel = nn.Linear(3, 4)\n"
        "number = 5\n\n\ndef two(a, b):\n    pass\n"
        "\n\ndef nothing():\n    pass\n\n\ndef tiny():\n"
        "    return make_workload(TinyResNet(width=8).eval(), train=64, test=32, batch_size=16)\n"
    )
    (made / "deep.yaml").write_text("target: {threads: 2}\nstages: [quantize]\n")
    (made / "odd.yaml").write_text("stages: [quantise]\n")
    (made / "text.onnx").write_text("no ONNX")
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("x", "output")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["output"])], "real", shapes[:1], shapes[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), made / "real.onnx")
    np.savez(made / "data.npz", targets=np.zeros(30))
    rows, classes = np.ones((30, 3), np.float32), np.arange(30) % 3
    np.savez(made / "whole.npz", x=rows, targets=classes)
    np.savez(made / "floats.npz", x=rows, targets=classes.astype(np.float32))
    np.savez(made / "marked.npz", x=rows, targets=np.eye(3, dtype=np.float32)[classes])
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
    with pytest.raises((ValueError, TypeError, WrongUseError, SystemExit), match=says):
        do()
