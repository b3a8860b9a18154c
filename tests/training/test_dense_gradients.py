"""Embeddings with sparse gradients train, are clipped and are ranked as dense ones, to the same bits."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.batches import Batches
from compressor.metrics import Metric
from compressor.pruning.ranking.gradients import empirical_fisher, loss_gradients
from compressor.running.preflight import check_workload
from compressor.stage import Context
from compressor.stages import Distill, FineTune, SparseTraining
from compressor.training.optimizers.choices import SGD, AdamW
from compressor.training.optimizers.dense_gradients import dense_gradients
from compressor.training.snapshots import capture
from compressor.workload import Workload

TOKENS = torch.randint(0, 50, (64, 5), generator=torch.Generator().manual_seed(0))
LABELS = (TOKENS[:, 0] > 25).long()


class Looked(nn.Module):
    """One of the two layers that look up, with a layer of BatchNorm for SGD, without for AdamW."""

    def __init__(self, *, sparse: bool, bag: bool, norm: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        kind = nn.EmbeddingBag if bag else nn.Embedding
        self.embedding = kind(50, 8, sparse=sparse)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.layer = nn.Linear(8, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        found = self.embedding(tokens)
        return self.layer(self.norm(found if found.ndim == 2 else found.mean(dim=1)))


class ByFunction(Looked):
    """Looks up by the function, whose weight no module says anything of."""

    def __init__(self, *, sparse: bool, bag: bool, norm: bool) -> None:
        super().__init__(sparse=False, bag=False, norm=norm)
        self.sparse = sparse

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer(self.norm(F.embedding(tokens, self.embedding.weight, sparse=self.sparse).mean(dim=1)))


def workload(model: nn.Module) -> Workload:
    data = Batches((TOKENS, LABELS), batch_size=16)
    return Workload(
        name="small",
        model=model.eval(),
        example_inputs=TOKENS[:2],
        train=data,
        calibration=data,
        validation=data,
        test=data,
        loss=F.cross_entropy,
        metric=Metric.accuracy(),
    )


KINDS = {
    "embedding": lambda **given: Looked(bag=False, **given),
    "bag": lambda **given: Looked(bag=True, **given),
    "function": lambda **given: ByFunction(bag=False, **given),
}


def close(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """But for the order in which the gradients of a row that is met several times are added."""
    return ours.keys() == theirs.keys() and all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


@pytest.mark.parametrize("norm", ["by SGD", "by AdamW"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", [FineTune(epochs=2), SparseTraining(epochs=2)])
def test_sparse_gradients_train_as_dense_ones(stage, kind: str, norm: str) -> None:
    """By both optimizers, with clipping: the weights are those of a layer that gives dense gradients."""
    trained = []
    # AdamW makes steps of its rate out of what rounding leaves of a gradient.
    stage = replace(stage, optimizer=SGD(rate=0.01) if norm == "by SGD" else AdamW(rate=2e-4))
    for sparse in (True, False):
        given = workload(KINDS[kind](sparse=sparse, norm=norm == "by SGD"))
        check_workload(given, [stage])
        trained.append(stage.apply(copy.deepcopy(given.model), given, Context(progress=False)))
        assert not torch.equal(trained[-1].embedding.weight, given.model.embedding.weight)
    assert close(capture(trained[0]), capture(trained[1]))


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_gradients_are_taught(kind: str) -> None:
    """A teacher's part of the loss reaches the rows that are looked up."""
    given = workload(KINDS[kind](sparse=True, norm=False))
    student = copy.deepcopy(given.model)
    nn.init.normal_(student.layer.weight)
    taught = Distill(epochs=2).apply(copy.deepcopy(student), given, Context(progress=False))
    assert not torch.equal(taught.embedding.weight, student.embedding.weight)


def test_sparse_gradients_rank_as_dense_ones() -> None:
    """Sums of gradients and of their squares are the same, and dense."""
    sparse, dense = (workload(Looked(sparse=sparse, bag=False, norm=False)) for sparse in (True, False))
    assert close(loss_gradients(sparse.model, sparse, 3, 0), loss_gradients(dense.model, dense, 3, 0))
    ours, theirs = (empirical_fisher(given.model, given, 32, 4, 0) for given in (sparse, dense))
    assert close(ours, theirs)
    assert not any(value.is_sparse for value in ours.values())


def test_gradients_are_sparse_again_afterwards() -> None:
    """What the user's own loop meets is what it met before."""
    model = Looked(sparse=True, bag=False, norm=False)
    with dense_gradients(model):
        model(TOKENS).sum().backward()
        assert not model.embedding.weight.grad.is_sparse
    model.zero_grad()
    model(TOKENS).sum().backward()
    assert model.embedding.weight.grad.is_sparse
