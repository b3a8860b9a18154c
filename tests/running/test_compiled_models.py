"""Models that torch compiles a part of at every call are quantized and trained; what cannot follow them says so."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop

from compressor import Budget, Pipeline
from compressor.files.export import export_onnx
from compressor.running.preflight import check_workload
from compressor.runtime import predict_batches
from compressor.stages import FineTune, Macs, PruneChannels, Quantize, ShrinkStructure
from compressor.structure.calling.compiled import compiles_again
from workbench.same_data import three_classes


class Branching(nn.Module):
    """Either of two layers, chosen inside of one operator."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.positive, self.negative = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return torch.cond(h.sum() > 0, self.positive.forward, self.negative.forward, (h,))


class Looping(nn.Module):
    """A layer three times, counted inside of one operator."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        def step(count: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            return count + 1, torch.tanh(self.again(h))

        _, h = while_loop(lambda count, h: count < 3, step, (torch.tensor(0), self.first(x)))
        return self.last(h)


# torch's own warnings on what it compiles in eager mode.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("kind", [Branching, Looping])
def test_they_are_tried_and_exported(kind: type[nn.Module]) -> None:
    """The checks watch operators, which torch cannot compile under: the model runs all the same afterwards.

    The file takes the branch that the model takes.
    """
    model = kind().eval()
    workload = three_classes(model, 4)
    check_workload(workload, [FineTune(epochs=1), Quantize()])
    for inputs in (torch.randn(6, 4) + 3, torch.randn(6, 4) - 3):
        ((found, _),) = predict_batches(export_onnx(model, workload).onnx_bytes, [(inputs, torch.zeros(6))])
        torch.testing.assert_close(found, model(inputs).detach())


def test_stages_that_look_inside_say_what_is_in_their_way(tmp_path: Path) -> None:
    """One sentence with the operator, no page of the compiler's; the stages after them are not harmed."""
    stages = [PruneChannels(remove=0.3, align=1), ShrinkStructure(target=Macs(0.5)), Quantize()]
    run = Pipeline(stages, budget=Budget(max_drop=0.9)).run(three_classes(Branching().eval(), 4), out=tmp_path)
    for step in run.report.steps[1:3]:
        assert not step.kept
        assert (
            "torch's operator cond takes whole functions, and what happens inside them is not followed" in step.reason
        )
        assert len(step.reason) < 400
    assert run.report.steps[3].measurement is not None


def test_other_errors_are_no_compilers() -> None:
    """Compiled code of the user's is left alone then."""
    assert not compiles_again(RuntimeError("shape '[2, 3]' is invalid"))
