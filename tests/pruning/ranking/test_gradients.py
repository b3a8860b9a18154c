"""Gradients for ranking are those of the function that a model computes, however its code computes it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.pruning.ranking.gradients import empirical_fisher, loss_gradients
from workbench.same_data import three_classes


class Net(nn.Module):
    """A step between two layers, by `step`."""

    def __init__(self, step: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.step = step
        self.stem, self.part, self.head = nn.Linear(5, 8), nn.Linear(4, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.step(self, F.relu(self.stem(x))))


def written(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :4] = model.part(x[:, :4])
    return x


def joined(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model.part(x[:, :4]), x[:, 4:]], dim=1)


def scaled_in_place(model: nn.Module, x: Tensor) -> Tensor:
    x = torch.sigmoid(x)
    x *= model.part(x[:, :4]).mean()
    return x


def scaled(model: nn.Module, x: Tensor) -> Tensor:
    x = torch.sigmoid(x)
    return x * model.part(x[:, :4]).mean()


@pytest.mark.parametrize(("in_place", "twin"), [(written, joined), (scaled_in_place, scaled)])
@pytest.mark.parametrize("kind", ["sum", "fisher"])
def test_code_for_inference_has_the_gradients_of_its_twin(
    in_place: Callable[..., Tensor], twin: Callable[..., Tensor], kind: str
) -> None:
    """Writing into what a backward pass needs (partial convolutions) changes no gradient; torch alone refuses it."""
    model = Net(in_place).eval()
    work = three_classes(model, 5)
    with pytest.raises(RuntimeError, match="inplace operation"):
        F.cross_entropy(model(work.example_inputs), torch.tensor([0, 1])).backward()

    def gradients() -> dict[str, Tensor]:
        if kind == "sum":
            return loss_gradients(model, work, 2, 0)
        return empirical_fisher(model, work, 8, 2, 0)

    found = gradients()
    model.step = twin
    wanted = gradients()
    assert found.keys() == wanted.keys() == dict(model.named_parameters()).keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_other_errors_are_raised_as_they_are() -> None:
    """A model that fails is not tried again."""
    calls = []

    def failing(model: nn.Module, x: Tensor) -> Tensor:
        calls.append(model)
        raise RuntimeError("mine")

    model = Net(failing).eval()
    with pytest.raises(RuntimeError, match="mine"):
        loss_gradients(model, three_classes(model, 5), 1, 0)
    assert len(calls) == 1
