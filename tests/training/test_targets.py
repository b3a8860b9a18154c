"""Targets with more than one tensor, batches with more than a target, and augmentations that mix targets."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from compressor import Pipeline
from compressor.batches import Batches, judged_target, target_rows, with_judged
from compressor.errors import WorkloadError
from compressor.measuring.scores import score_rows
from compressor.metrics import Metric
from compressor.pruning.ranking.gradients import empirical_fisher, loss_gradients
from compressor.quantization.choice.sensitivity import first_samples
from compressor.running.preflight import check_workload
from compressor.stage import Context
from compressor.stages import Distill, FineTune, PruneChannels
from compressor.streams.passes import Mapped
from compressor.structure.calling.shown import shown_by
from compressor.training.optimizers.choices import AdamW
from compressor.workload import Workload
from workbench.comparison import same_weights

INPUTS = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
LABELS = (INPUTS[:, 0] > 0).long()
WEIGHTS = torch.rand(64, generator=torch.Generator().manual_seed(1))
BOTH = {"weight": WEIGHTS, "target": LABELS}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def weighted(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
    return (F.cross_entropy(outputs, targets["target"], reduction="none") * targets["weight"]).mean()


def workload(train: Any = None, **changes: Any) -> Workload:
    data = Batches((INPUTS, LABELS), batch_size=16)
    given: dict[str, Any] = {
        "name": "small",
        "model": network(),
        "example_inputs": INPUTS[:2],
        "train": data if train is None else train,
        "calibration": data,
        "validation": data,
        "test": data,
        "loss": F.cross_entropy,
        "metric": Metric.accuracy(),
    }
    return Workload(**given | changes)


def of_dicts() -> Workload:
    data = Batches((INPUTS, BOTH), batch_size=16)
    return workload(data, calibration=data, validation=data, test=data, loss=weighted)


def mixup(inputs: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Zhang et al. 2017, arXiv:1710.09412, with a weight for the batch."""
    part = torch.rand((), generator=generator)
    shares = F.one_hot(targets, 2).float()
    return part * inputs + (1 - part) * inputs.flip(0), part * shares + (1 - part) * shares.flip(0)


def cutmix(inputs: Tensor, targets: Tensor, generator: torch.Generator, least: int = 1) -> tuple[Tensor, Tensor]:
    """Yun et al. 2019, arXiv:1905.04899, over features in the place of a box of pixels."""
    cut = int(torch.randint(least, inputs.shape[1], (), generator=generator))
    shares = F.one_hot(targets, 2).float()
    part = cut / inputs.shape[1]
    return torch.cat([inputs[:, :cut], inputs.flip(0)[:, cut:]], dim=1), part * shares + (1 - part) * shares.flip(0)


@pytest.mark.parametrize("augment", [mixup, cutmix])
def test_mixed_targets_train_and_hard_ones_are_judged(augment) -> None:
    """The loss has shares of classes in training, validation has labels; one seed gives the same bits twice."""
    train = Batches((INPUTS, LABELS), batch_size=16, shuffle=True, augment=augment)
    _, targets = next(iter(train))
    assert targets.shape == (16, 2)
    assert torch.allclose(targets.sum(dim=1), torch.ones(16))
    given = workload(train)
    check_workload(given, [FineTune()])
    stage = FineTune(epochs=8, optimizer=AdamW(rate=0.01))
    models = [stage.apply(copy.deepcopy(given.model), given, Context(progress=False)) for _ in range(2)]
    assert same_weights(*models)
    accuracy = float((models[0].eval()(INPUTS).argmax(dim=1) == LABELS).double().mean())
    assert accuracy > float((given.model(INPUTS).argmax(dim=1) == LABELS).double().mean())


def test_weights_of_samples_may_come_with_a_mix() -> None:
    """An augmentation may hand targets on as a dict, whatever the dataset has."""

    def weighing(inputs: Tensor, targets: Tensor, generator: torch.Generator) -> Any:
        return inputs, {"target": targets, "weight": torch.rand(len(targets), generator=generator)}

    given = of_dicts()
    train = Batches((INPUTS, LABELS), batch_size=16, augment=weighing)
    check_workload(replace(given, train=train), [FineTune()])


def test_an_augmentation_is_given_what_it_asks_for() -> None:
    """Two arguments or three, by those that have no default; one that gives no pair back is told what is wanted."""
    assert Batches((INPUTS, LABELS), augment=lambda inputs, generator, more=1: inputs + more)
    (inputs, targets) = next(iter(Batches((INPUTS, LABELS), augment=lambda inputs, generator, more=1: inputs + more)))
    assert torch.equal(inputs, INPUTS + 1)
    assert targets is not None
    wrong = Batches((INPUTS, LABELS), augment=lambda inputs, targets, generator: inputs)
    with pytest.raises(WorkloadError, match=r"must give the pair \(inputs, targets\), got Tensor"):
        check_workload(workload(wrong))


def test_a_third_element_is_no_input_unless_the_model_takes_it() -> None:
    """(inputs, labels, numbers of samples) is refused with both ways out, which work."""
    loader = DataLoader(TensorDataset(INPUTS, LABELS, torch.arange(64)), batch_size=16)
    with pytest.raises(
        WorkloadError, match=r"A batch of 3 is taken for 2 inputs and a target: .*Mapped\(loader, lambda"
    ):
        check_workload(workload(loader))
    check_workload(workload(Mapped(loader, lambda batch: (batch[0], batch[1]))), [FineTune()])
    kept = Mapped(loader, lambda batch: (batch[0], {"target": batch[1], "weight": batch[2] / 64}))
    check_workload(workload(kept, calibration=kept, validation=kept, test=kept, loss=weighted), [FineTune()])
    dataset = Mapped(TensorDataset(INPUTS, LABELS, torch.arange(64)), lambda sample: sample[:2])
    given = Workload.from_datasets(network(), train=dataset, test=dataset, batch_size=16)
    assert given.example_inputs.shape == (2, 6)
    check_workload(given, [FineTune()])


def test_what_is_judged_is_found_in_any_form() -> None:
    """A dict's entry that is called a target, else the first; what takes its place stands where it stood."""
    assert judged_target(LABELS) is LABELS
    assert judged_target(BOTH) is LABELS
    assert judged_target({"a": (WEIGHTS, LABELS)}) is WEIGHTS
    assert judged_target([(LABELS, WEIGHTS)]) is LABELS
    with pytest.raises(ValueError, match="no tensor"):
        judged_target(())
    other = LABELS + 1
    found = with_judged({"a": 0 * WEIGHTS, "label": (LABELS, WEIGHTS)}, other)
    assert found["label"][0] is other
    assert found["label"][1] is WEIGHTS
    classes = torch.ones(2)
    rows = target_rows({"target": LABELS, "classes": classes}, slice(4, 8), 64)
    assert torch.equal(rows["target"], LABELS[4:8])
    assert rows["classes"] is classes


def test_every_reader_takes_targets_of_several_tensors() -> None:
    """Ranking, the training step that pruning tries, measures of single layers: the loss has all, metrics one."""
    given = of_dicts()
    check_workload(given, [FineTune()])
    model = copy.deepcopy(given.model)
    (name, *_) = loss_gradients(model, given, 2, 0)
    weighted(model(INPUTS[:16]), target_rows(BOTH, slice(16), 64)).backward()
    first = model.get_parameter(name).grad.clone()
    assert torch.allclose(loss_gradients(model, given, 1, 0)[name], first)
    whole = empirical_fisher(model, given, 16, 16, 0)[name]
    assert torch.allclose(whole, first.square() * 16)
    shown = shown_by(given)
    assert shown.step is not None
    assert len(shown.steps()[0].targets["weight"]) == 4
    ((_, targets),) = first_samples(given.calibration, 5)
    assert len(targets["target"]) == len(targets["weight"]) == 5


def test_targets_of_several_tensors_go_through_a_pipeline(tmp_path) -> None:
    """Pruned, taught and scored as with plain labels: accuracy is that of the labels in the dict."""
    given = of_dicts()
    stages = [PruneChannels(remove=0.25, align=1), Distill(epochs=2, views=1, tail_epochs=0)]
    result = Pipeline(stages).run(given, out=tmp_path, progress=False)
    measured = result.report.steps[0].measurement
    assert measured is not None
    wanted = float((given.model(INPUTS).argmax(dim=1) == LABELS).double().mean())
    assert measured.score.value == pytest.approx(wanted)
    rows = score_rows((tmp_path / "model.onnx").read_bytes(), given.test, given.metric)
    assert len(rows) == 64
