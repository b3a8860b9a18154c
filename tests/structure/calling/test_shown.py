"""Which calls a workload shows of its model."""

import dataclasses

import torch
from torch.nn import functional as F

from compressor.metrics import Metric
from compressor.structure.calling.shown import Shown, first_samples, shown_by
from compressor.workload import Workload
from workbench.tiny import TinyResNet


def workload_of(calibration: list, train: list | None = None, other_inputs: tuple = ()) -> Workload:
    return Workload(
        name="tiny",
        model=TinyResNet().eval(),
        example_inputs=calibration[0][0][:3] if torch.is_tensor(calibration[0][0]) else calibration[0][0],
        other_inputs=other_inputs,
        train=train or calibration,
        calibration=calibration,
        validation=calibration,
        test=calibration,
        loss=F.cross_entropy,
        metric=Metric.accuracy(),
    )


def batch(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(shape), torch.zeros(shape[0], dtype=torch.long)


def test_data_of_one_shape_show_the_example_and_a_step() -> None:
    """Nothing is traced twice where all batches are alike, whatever their sizes."""
    shown = shown_by(workload_of([batch(8, 3, 8, 8), batch(5, 3, 8, 8)]))
    assert shown.example.shape == (2, 3, 8, 8)
    assert shown.others == ()
    assert [step.inputs.shape[0] for step in shown.steps()] == [4, 8]
    assert shown.steps()[0].targets.shape == (4,)


def test_the_shortest_and_the_longest_batch_are_shown() -> None:
    """Lengths of calibration and train beside the example: both ends, two samples each."""
    lengths = [batch(4, 3, size) for size in (9, 5, 12, 7)]
    shown = shown_by(workload_of(lengths, [batch(1, 3, 30), *lengths]))
    assert [tuple(inputs.shape) for inputs in shown.others] == [(2, 3, 5), (2, 3, 30)]


def test_other_forms_are_shown_beside_other_sizes() -> None:
    """A keyword that some batches have is a call of its own."""
    tokens, mask = torch.zeros(4, 6, dtype=torch.long), torch.ones(4, 6)
    plain, masked = ({"x": tokens}, torch.zeros(4)), ({"x": tokens, "mask": mask}, torch.zeros(4))
    shown = shown_by(workload_of([plain, masked, plain]))
    assert [sorted(inputs) for inputs in shown.others] == [["mask", "x"]]


def test_inputs_that_are_given_come_first() -> None:
    """The user's own other inputs are shown, and data of the same form are not shown again."""
    data = [batch(4, 3, 8), batch(4, 3, 16)]
    given = (torch.randn(3, 3, 16), torch.randn(2, 3, 40))
    shown = shown_by(workload_of(data, other_inputs=given))
    assert [tuple(inputs.shape) for inputs in shown.others] == [(2, 3, 16), (2, 3, 40)]


def test_reading_data_draws_nothing() -> None:
    """A shuffled set draws its order from torch's generator, which is as before."""
    x, y = torch.randn(24, 3, 8, 8), torch.arange(24) % 4
    workload = Workload.from_datasets(TinyResNet().eval(), train=(x, y), test=(x, y), batch_size=4)
    before = torch.get_rng_state()
    shown_by(workload)
    assert torch.equal(torch.get_rng_state(), before)


def test_loaders_with_a_generator_of_their_own_draw_nothing_either() -> None:
    """What a shuffling loader gives after a look at it is what it would have given before."""
    samples = torch.utils.data.TensorDataset(torch.randn(24, 3, 8, 8), torch.arange(24))
    first, second = (
        torch.utils.data.DataLoader(samples, 4, shuffle=True, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    shown_by(workload_of([batch(4, 3, 8, 8)], first))
    assert [targets.tolist() for _, targets in first] == [targets.tolist() for _, targets in second]


def test_tables_beside_samples_stay_whole() -> None:
    """What does not hold one row for each sample is not cut."""
    inputs = {"x": torch.randn(4, 3), "table": torch.randn(7, 3), "scale": torch.tensor(2.0)}
    few = first_samples(inputs, 2)
    assert [tuple(tensor.shape) for tensor in few.values()] == [(2, 3), (7, 3), ()]
    assert Shown.of(few).step is None
    assert dataclasses.replace(Shown.of(few), others=(few,)).others == (few,)
