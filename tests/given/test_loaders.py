"""Loaders of every usual kind become sets that can be read again and again; others are refused with the way out."""

import warnings
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from compressor.errors import WorkloadError
from compressor.given.notices import WorkloadWarning
from compressor.running.preflight import check_workload
from compressor.workload import Workload, batches_of

X = torch.arange(240.0).reshape(80, 3)
Y = torch.arange(80) % 4


def loader(features=X, targets=Y, **settings):
    return DataLoader(TensorDataset(features, targets), batch_size=16, **settings)


def workload_of(model=None, **given):
    known = {"train": loader(), "validation": loader(), "test": loader()} | given
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WorkloadWarning)
        return Workload.from_loaders(model or nn.Linear(3, 4), **known)


def rows(data):
    return [float(value) for inputs, _ in batches_of(data) for value in inputs[:, 0]]


def read(form=lambda x, y: (x, y)):
    """A generator of four batches of twenty."""
    for x, y in zip(X.split(20), Y.split(20), strict=True):
        yield form(x, y)


class Stream(IterableDataset):
    def __iter__(self):
        return zip(X, Y, strict=True)


FORMS = {
    "pairs": lambda x, y: (x, y),
    "lists": lambda x, y: [x, y],
    "arrays": lambda x, y: (x.numpy(), y.numpy()),
    "float64 arrays": lambda x, y: (x.double().numpy(), y.numpy()),
    "dicts": lambda x, y: {"input": x, "labels": y},
    "nested targets": lambda x, y: (x, {"labels": y, "weight": (torch.ones(len(y)), np.ones(len(y)))}),
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_every_form_are_read(form):
    """Called anew for every pass, each form gives float32 inputs and whole labels, and the first row at every pass."""
    workload = workload_of(train=lambda: read(FORMS[form]), validation=list(read(FORMS[form])))
    for _ in range(2):
        inputs, targets = next(iter(batches_of(workload.train)))
        first = inputs["input"] if form == "dicts" else inputs
        assert torch.equal(first, X[:20])
        assert first.dtype == torch.float32
        labels = targets["labels"] if form == "nested targets" else targets
        assert torch.equal(labels, Y[:20])
        if form == "nested targets":
            assert targets["weight"][1].dtype == torch.float32


@pytest.mark.parametrize("form", ["pairs", "float64 arrays", "nested targets"])
def test_what_is_made_of_them_passes_the_checks_before_work(form):
    """Model, loss and metric take the batches, three ways of reading in one workload."""

    def loss(outputs, targets):
        labels = targets["labels"] if isinstance(targets, dict) else targets
        return F.cross_entropy(outputs, labels)

    given = {"train": lambda: read(FORMS[form]), "validation": list(read(FORMS[form])), "test": loader()}
    checked = check_workload(workload_of(loss=loss, **given))
    assert checked.example_inputs.shape == (2, 3)


def test_float64_is_told_once_for_all_sets():
    """Two sets hold it, one sentence says so."""
    double = loader(X.double())
    with pytest.warns(WorkloadWarning, match="train and test hold float64 numbers, which are converted") as told:
        workload = Workload.from_loaders(nn.Linear(3, 4), train=double, validation=loader(), test=double)
    assert len(told) == 1
    assert rows(workload.test) == X[:, 0].tolist()


def test_without_a_loss_the_usual_one_is_of_the_judged_target():
    """Of targets that hold weights besides, and of those that come as a tuple; a batch's loss is torch's own."""
    for form in (FORMS["nested targets"], lambda x, y: (x, (y, torch.ones(len(y))))):
        batches = list(read(form))
        workload = check_workload(workload_of(**dict.fromkeys(("train", "validation", "test"), batches)))
        outputs = torch.randn(20, 4)
        _, targets = next(iter(batches_of(workload.train)))
        assert torch.equal(workload.loss(outputs, targets), F.cross_entropy(outputs, Y[:20]))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_data_of_a_model_in_half_precision_come_with_it(kind):
    """Both become float32, in loaders and arrays; beside a model in float32 they are their owner's to convert."""
    data = loader(X.to(kind))
    workload = workload_of(nn.Linear(3, 4).to(kind), **dict.fromkeys(("train", "validation", "test"), data))
    assert check_workload(workload).example_inputs.dtype == torch.float32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WorkloadWarning)
        pair = (X.to(kind), Y)
        arrays = Workload.from_datasets(nn.Linear(3, 4).to(kind), train=pair, validation=pair, test=pair)
    assert {inputs.dtype for inputs, _ in arrays.test} == {torch.float32}
    with pytest.raises(WorkloadError, match=r"convert the inputs, x.float\(\)|use .float\(\)"):
        check_workload(workload_of(nn.Linear(3, 4), **dict.fromkeys(("train", "validation", "test"), data)))


def test_datasets_in_float64_are_told_and_converted():
    """Arrays, and map-style datasets of Python's own numbers, which torch would collate to float64."""

    class Numbers(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, index):
            return np.array([index, 1.0, 2.0]), float(index)

    with pytest.warns(WorkloadWarning, match="train and test hold float64"):
        workload = Workload.from_datasets(nn.Linear(3, 1), train=Numbers(), test=Numbers(), metric="mse")
    inputs, targets = next(iter(workload.test))
    assert (inputs.dtype, targets.dtype) == (torch.float32, torch.float32)
    assert targets[:3].tolist() == [0, 1, 2]


def test_a_part_of_a_loader_is_held_out_by_samples():
    """Eight of eighty decide and do not train; the training loader still shuffles, drops and collates as it did."""

    def collate(samples):
        return torch.stack([x for x, _ in samples]) + 1000, torch.stack([y for _, y in samples])

    given = loader(shuffle=True, drop_last=True, collate_fn=collate)
    with pytest.warns(WorkloadWarning, match="8 of the 80 samples of train are held out") as told:
        workload = Workload.from_loaders(nn.Linear(3, 4), train=given, test=loader())
    assert len(told) == 1
    decides = rows(workload.validation)
    assert len(decides) == 8
    assert min(decides) >= 1000
    trains = rows(workload.train)
    assert len(trains) == 64  # 72 in full batches of 16
    assert not set(trains) & set(decides)
    assert trains != sorted(trains)


def test_a_part_of_a_list_is_held_out_by_batches():
    """One of four batches decides."""
    workload = workload_of(train=list(read()), validation=None)
    assert len(workload.validation) == 1
    assert sorted(rows(workload.validation) + rows(workload.train)) == X[:, 0].tolist()


@pytest.mark.parametrize("train", [read, DataLoader(Stream(), batch_size=20)], ids=["function", "stream"])
def test_streams_cannot_be_parted(train):
    """Which samples come when is not known: validation= is the way out."""
    with pytest.raises(WorkloadError, match=r"validation is missing.*Give validation=loader"):
        Workload.from_loaders(nn.Linear(3, 4), train=train, test=loader())


def test_calibration_is_the_first_batches_of_train():
    """Forty samples are three batches of sixteen, and the length is told."""
    workload = workload_of(calibration_samples=40)
    assert rows(workload.calibration) == X[:48, 0].tolist()
    assert len(workload.calibration) == 3


def test_making_a_workload_draws_nothing():
    """Random numbers after it are those without it, though loaders draw when they are looked at."""
    model = nn.Linear(3, 4)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    workload_of(
        model, train=loader(shuffle=True), metric=lambda outputs, targets: (outputs.argmax(1) == targets).float()
    )
    assert torch.equal(torch.rand(2), expected)


def test_named_tuples_stay_what_they_are():
    """A loss that reads targets by name still can."""

    class Targets(NamedTuple):
        label: torch.Tensor
        weight: torch.Tensor

    workload = workload_of(
        train=[(X.double(), Targets(Y, torch.ones(80).double()))], loss=lambda outputs, targets: targets.weight.sum()
    )
    _, targets = next(iter(batches_of(workload.train)))
    assert targets.weight.dtype == torch.float32
    assert targets.label is not None


class Table:
    """What `datasets.Dataset` has: rows as dicts of Python's own values, named columns."""

    def __init__(self, rows):
        self.rows, self.features, self.column_names = rows, {}, list(rows[0]) if rows else []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def table(lengths=(4,)):
    return Table(
        [
            {"text": "a b", "ids": list(range(lengths[n % len(lengths)])), "scale": 0.5, "label": n % 3}
            for n in range(24)
        ]
    )


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(8, 5), nn.Linear(5, 3)

    def forward(self, ids, scale):
        return self.head(self.embedding(ids).mean(1) * scale[:, None])


def test_tables_come_in_batches_without_their_texts():
    """Rows of lists and numbers become (batch, tokens) and labels; the text is named and left out."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        workload = Workload.from_loaders(Reader(), train=table(), test=table(), batch_size=6)
    said = [str(warning.message) for warning in told]
    assert [text for text in said if "validation" not in text] == [
        f"{name}: the columns 'text' hold no numbers and are left out" for name in ("train", "test")
    ]
    inputs, targets = next(iter(workload.test))
    assert inputs["ids"].tolist() == [[0, 1, 2, 3]] * 6
    assert inputs["scale"].dtype == torch.float32
    assert targets.tolist() == [0, 1, 2, 0, 1, 2]
    assert len(workload.validation.indices) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WorkloadWarning)
        check_workload(workload)


class TableStream:
    """What `datasets.IterableDataset` has: rows without a length."""

    column_names, features = ("ids",), None

    def __iter__(self):
        return iter([{"ids": [1, 2], "label": 0}])


@pytest.mark.parametrize(
    ("train", "says"),
    [
        (read(), r"train is a generator, an iterator.*train=read instead of train=read\(\)"),
        (iter([1]), "train is a list_iterator, an iterator"),
        ((X, Y), "a pair of Tensors is all samples at once; use Workload.from_datasets"),
        (X, "a Tensor is all samples at once"),
        (TensorDataset(X, Y), r"a TensorDataset is a dataset of samples.*DataLoader\(train, batch_size=128\)"),
        ({"train": [], "test": []}, "a dict of 'train', 'test'; give one of them"),
        (5, "got a int; use a DataLoader"),
        (TensorDataset, "got the class TensorDataset"),
        ("data.csv", "got the text 'data.csv'"),
        ([], "train must have batches, got none"),
        (lambda: iter([]), "got none.*let the function make a new iterator at every call"),
        ([X], r"must be \(inputs, targets\), or a dict with labels.*got Tensor"),
        ([{"x": X, "y": Y}], "got dict: a dict batch needs one of"),
        ([("a", "b")], "and holds str; convert it"),
        ([(X[:0], Y[:0])], "must hold samples, got none"),
        (lambda: 1 / 0, "train cannot be read: ZeroDivisionError"),
        (TableStream(), r"a TableStream is a stream of rows.*DataLoader\(train.with_format"),
        (Table([]), "must have rows, got a table of none"),
        (Table([{"text": "a"}] * 3), "must have columns of numbers, got 'text'"),
        (
            Table([{"ids": [1, 2], "label": "cat"}] * 3),
            r"'label' must hold numbers, got 'cat'.*class_encode_column\('label'",
        ),
        (
            Table([{"image": object(), "label": 1}] * 3),
            r"numbers besides 'label', got 'image' \(object\); .*with_transform",
        ),
        (
            Table([{"ids": [1, 2], "kind": 1}] * 3),
            r"a column of labels, .* got 'ids', 'kind'; rename .*'kind', 'labels'",
        ),
        (table(lengths=(3, 4)), "the column 'ids' must have one shape in all rows"),
    ],
)
def test_what_is_no_loader_is_refused_with_the_way_out(train, says):
    """Each sentence names what was wanted, what was given and what to do."""
    with pytest.raises(WorkloadError, match=says):
        workload_of(train=train)


def test_unknown_arguments_get_a_suggestion():
    """As Python's own TypeError, with the name that was meant."""
    with pytest.raises(TypeError, match=r"got 'free_size'; did you mean 'free_sizes'\?"):
        workload_of(free_size="batch")


def test_functions_of_no_module_are_read_as_others() -> None:
    """Code that ran without a name (`exec`) makes such functions; a class may say nothing of its module, too."""
    made: dict = {"torch": torch, "DataLoader": DataLoader, "Dataset": Dataset}
    code = """
def collate(samples):
    return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])

class Rows(Dataset):
    __module__ = None

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.ones(3) * index, torch.tensor(index % 2)

loader = DataLoader(Rows(), batch_size=4, collate_fn=collate)
"""
    exec(compile(code, "typed", "exec"), made)
    assert made["collate"].__module__ is None
    workload = Workload.from_loaders(nn.Linear(3, 2), **dict.fromkeys(("train", "validation", "test"), made["loader"]))
    assert len(list(workload.train)) == 3
