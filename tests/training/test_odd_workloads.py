"""Models, targets and loaders as strangers write them: trained as a loop by hand does, or refused before work."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from compressor.batches import Batches
from compressor.errors import WorkloadError
from compressor.metrics import Metric
from compressor.outputs.kinds import OtherOutput
from compressor.running.preflight import check_workload
from compressor.stage import Context
from compressor.stages import SGD, Constant, Distill, FineTune, Float32
from compressor.workload import Workload
from workbench.same_data import same_data

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(65, 6, generator=GENERATOR)
LABELS = (INPUTS[:, 0] > 0).long() + (INPUTS[:, 1] > 0.5).long()
TOKENS = torch.randint(8, (65, 4), generator=GENERATOR)
RATE = 0.05
SAID = {
    "optimizer": SGD(rate=RATE, momentum=0.0),
    "schedule": Constant(),
    "clip": None,
    "weight_decay": 0.0,
    "precision": Float32(),
}
# Every epoch scores the same, so that the last one is kept.
FLAT = Metric(name="flat", per_sample=lambda outputs, _: torch.zeros(len(outputs)), bounded=False)


class Tied(nn.Module):
    """A table of words that is the layer of its outputs, too."""

    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(8, 6, **how), nn.Linear(6, 8, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.words(x).mean(dim=1))


class Table(nn.Module):
    """An embedding with settings of its own before a layer."""

    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(8, 6, **how), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.words(x).mean(dim=1))


class StaysInEval(nn.Module):
    """A BatchNorm that is put back into eval mode whenever the model is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.out = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.norm(self.first(x))))

    def train(self, mode: bool = True) -> "StaysInEval":  # noqa: FBT001, FBT002 - torch's signature
        super().train(mode)
        self.norm.eval()
        return self


class Backbone(nn.Module):
    """Features under no_grad, with a head that learns; `norm` learns its statistics all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12))
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.features(x)
        return self.out(F.relu(features))


class ComplexWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, dtype=torch.cfloat))
        self.out = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((x.to(torch.cfloat) @ self.weight).abs())


class Wrapped(nn.Module):
    """As Lightning's modules are: a network, its loss, a step and its optimizer in one."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.loss = small(), nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, _number: int) -> Tensor:
        inputs, targets = batch
        return self.loss(self(inputs), targets)


def small(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), *middle, nn.Tanh(), nn.Linear(12, 3))


def last_ignored() -> Tensor:
    labels = LABELS.clone()
    labels[16:32] = -100
    return labels


def mixed(samples: list[Any]) -> Any:
    """Mixup where batches are made: both labels and the share of the first, one for each sample."""
    inputs, labels = (torch.stack(part) for part in zip(*samples, strict=True))
    return 0.3 * inputs + 0.7 * inputs.flip(0), (labels, labels.flip(0), torch.full((len(labels),), 0.3))


def of_mixed(outputs: Tensor, targets: Any) -> Tensor:
    if isinstance(targets, Tensor):
        return F.cross_entropy(outputs, targets)
    first, second, share = targets
    each = [F.cross_entropy(outputs, labels, reduction="none") for labels in (first, second)]
    return (share * each[0] + (1 - share) * each[1]).mean()


def of_gradients(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss with a penalty on its own gradient."""
    loss = F.cross_entropy(outputs, targets)
    (slope,) = torch.autograd.grad(loss, outputs, create_graph=True) if outputs.requires_grad else (outputs,)
    return loss + 0.1 * slope.square().sum()


def given(model: Callable[[], nn.Module], data: Any = None, loss: Any = F.cross_entropy, example: Any = None) -> Any:
    """A workload of the model on batches of 16 of the 65 samples."""

    def make() -> Workload:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = model().eval()
        judged = Batches((INPUTS, LABELS), batch_size=16)
        train = judged if data is None else data() if callable(data) else data
        shown = INPUTS[:2] if example is None else example
        sets = same_data(made, train, shown, loss=loss, metric=FLAT)
        return replace(sets, validation=judged, calibration=judged, test=judged) if example is None else sets

    return make


TOKEN_BATCHES = Batches((TOKENS, TOKENS[:, 0]), batch_size=16)
TRAINED = {
    "tied weights": given(Tied, TOKEN_BATCHES, example=TOKENS[:2]),
    "tied weights, sparse gradients": given(lambda: Table(sparse=True), TOKEN_BATCHES, example=TOKENS[:2]),
    "a padding word": given(lambda: Table(padding_idx=0), TOKEN_BATCHES, example=TOKENS[:2]),
    "a norm that train() leaves in eval": given(StaysInEval),
    "features under no_grad": given(Backbone, Batches((INPUTS[:64], LABELS[:64]), batch_size=16)),
    "complex weights": given(ComplexWeights),
    "a module with its loss": given(Wrapped, loss=Wrapped().loss),
    "batches of one under GroupNorm": given(lambda: small(nn.GroupNorm(3, 12)), Batches((INPUTS, LABELS))),
    "a last batch of one without a norm": given(small),
    "a batch without labels, by sum": given(
        small, Batches((INPUTS, last_ignored()), batch_size=16), nn.CrossEntropyLoss(reduction="sum")
    ),
    "mixup where batches are made": given(
        small, lambda: DataLoader(TensorDataset(INPUTS, LABELS), batch_size=16, collate_fn=mixed), of_mixed
    ),
    "a loss on its own gradient": given(small, loss=of_gradients),
    "a negative loss": given(small, loss=lambda o, t: -o.gather(1, t[:, None]).tanh().mean()),
    "weight norm": given(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))),
}  # fmt: skip


def by_hand(workload: Workload, epochs: int) -> nn.Module:
    model = copy.deepcopy(workload.model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(epochs):
        for inputs, targets in workload.train:
            optimizer.zero_grad()
            workload.loss(model(inputs), targets).backward()
            for parameter in model.parameters():
                if parameter.grad is not None and parameter.grad.is_sparse:
                    parameter.grad = parameter.grad.to_dense()
            optimizer.step()
    return model.eval()


@pytest.mark.parametrize("name", TRAINED)
def test_it_is_trained_as_by_hand(name: str) -> None:
    """The same weights and statistics as a plain loop gives, after the check before work has let it pass."""
    workload = TRAINED[name]()
    before = copy.deepcopy(workload.model)
    wanted = by_hand(workload, 2)
    stage = FineTune(epochs=2, tail_epochs=0, **SAID)
    checked = check_workload(workload, [stage])
    model = stage.apply(copy.deepcopy(checked.model), checked, Context(progress=False)).eval()
    moved = 0
    for (key, ours), theirs, start in zip(
        model.state_dict().items(), wanted.state_dict().values(), before.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")
        moved += not torch.equal(ours, start)
    assert moved >= 1


class Experts(nn.Module):
    """A mixture of two experts, which leaves a term for their balance in `where` it is told."""

    def __init__(self, where: str = "attribute", *, gives: bool = False) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(6, 2), nn.ModuleList(nn.Linear(6, 3) for _ in range(2))
        self.where, self.gives, self.balance = where, gives, torch.zeros(())
        self.terms: Any = {"balance": torch.zeros(())} if where == "dict" else [torch.zeros(())]

    def forward(self, x: Tensor) -> Any:
        shares = self.gate(x).softmax(dim=-1)
        term = shares.mean(dim=0).square().sum()
        if self.where == "list":
            self.terms.clear()
            self.terms.append(term)
        elif self.where == "dict":
            self.terms = {"balance": term}
        else:
            self.balance = term
        output = sum(shares[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts))
        return (output, shares) if self.gives else output


@pytest.mark.parametrize(
    ("where", "inside", "read", "named"),
    [
        ("attribute", False, lambda model: model.balance, "balance, which forward"),
        ("list", False, lambda model: model.terms[0], "terms, which forward"),
        ("dict", False, lambda model: model.terms["balance"], "terms, which forward"),
        ("attribute", True, lambda model: model[0].balance, r"0\.balance, which forward"),
    ],
)
def test_a_loss_that_reads_what_forward_leaves_is_refused(where: str, inside: bool, read: Any, named: str) -> None:  # noqa: FBT001 - a table
    """A term in an attribute of the original is that of an earlier batch in a training of a copy."""
    model = nn.Sequential(Experts(where)) if inside else Experts(where)
    workload = given(lambda: model, loss=lambda o, t: F.cross_entropy(o, t) + 0.1 * read(model))()
    for stage in (FineTune(), Distill()):
        with pytest.raises(WorkloadError, match=f"(?s)loss reads {named}.*OtherOutput"):
            check_workload(workload, [stage])
    # It harms nobody where nothing is trained, or where the loss looks at something else.
    check_workload(workload)
    check_workload(replace(workload, loss=lambda o, t: F.cross_entropy(o, t) + 0.0 * len(model.state_dict())), [stage])


def test_its_way_out_trains_the_term() -> None:
    """Given as an output with a loss of its own, the balance of the experts gets better."""
    model = Experts(gives=True)
    with torch.no_grad():
        model.gate.bias.copy_(torch.tensor([2.0, -2.0]))

    def balance(shares: Tensor, _targets: Tensor) -> Tensor:
        return shares.mean(dim=0).square().sum()

    workload = given(lambda: model, loss=F.cross_entropy)()
    workload = replace(workload, others={"1": OtherOutput(loss=balance, weight=5.0)})
    stage = FineTune(epochs=4, tail_epochs=0, **SAID)
    checked = check_workload(workload, [stage])
    trained = stage.apply(copy.deepcopy(checked.model), checked, Context(progress=False)).eval()
    with torch.no_grad():
        before, after = (float(balance(each(INPUTS)[1], LABELS)) for each in (model, trained))
    assert after < before - 0.02


def test_a_lone_sample_at_the_end_is_left_out_under_batch_norm() -> None:
    """65 samples in batches of 16: the check lets them pass, the training takes 64 of them, and the report says so."""
    workload = given(lambda: small(nn.BatchNorm1d(12)))()
    stage, context = FineTune(epochs=1, tail_epochs=0, **SAID), Context(progress=False)
    checked = check_workload(workload, [stage])
    model = stage.apply(copy.deepcopy(checked.model), checked, context)
    wanted = by_hand(given(lambda: small(nn.BatchNorm1d(12)), Batches((INPUTS[:64], LABELS[:64]), batch_size=16))(), 1)
    for ours, theirs in zip(model.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    assert "batches of one sample are left out" in context.details["trainings"][-1]["data"]


def test_a_step_of_lightning_is_no_loss() -> None:
    """It takes a batch and its number; the refusal says what a loss takes."""
    module = Wrapped()
    with pytest.raises(WorkloadError, match=r"fails: .*It must take \(outputs, targets\)"):
        check_workload(given(lambda: module, loss=module.training_step)(), [FineTune()])
