"""Programs that need no decomposition give the file that they give with it, and no other program is taken for one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F
from torch.onnx._internal.exporter import _registration

from compressor.files import direct_programs, export, exporters
from compressor.files.direct_programs import made_direct_, one_table
from compressor.files.export import export_onnx
from workbench.same_data import same_data


class Block(nn.Module):
    """A gate by hard functions in place, and a sum in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.act, self.gate = nn.Hardswish(inplace=True), nn.Hardsigmoid(inplace=True)
        self.pool, self.squeeze = nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.conv(x)))
        y = y * self.gate(self.squeeze(self.pool(y)))
        y += x
        return y


class Everything(nn.Module):
    """Most of what convolutional networks are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU6(inplace=True), Block(4), nn.MaxPool2d(3, 2, 1))
        self.right = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.SiLU(), nn.AvgPool2d(2))
        self.more = nn.Sequential(
            nn.GroupNorm(2, 8), nn.PReLU(8), nn.Upsample(scale_factor=2), nn.ZeroPad2d(1), nn.ELU(), nn.LeakyReLU()
        )
        self.norm, self.tail = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Dropout(), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.more(torch.cat([self.left(x).tanh(), self.right(x)], dim=1))
        x = self.norm(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return self.tail(x - x.sigmoid()).softmax(-1)


def traced(function: Any, *shape: int, free: tuple[int, ...] = (0,), dtype: torch.dtype = torch.float32) -> Any:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear, self.plain = nn.Conv2d(3, 4, 1), nn.Linear(4, 4), nn.BatchNorm2d(4, affine=False)
            self.norm = nn.BatchNorm2d(4)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return function(self, x)

    dims = {axis: Dim.AUTO if axis in free else Dim.STATIC for axis in range(len(shape))}
    with torch.no_grad():
        return torch.export.export(
            Model().eval(), (torch.randn(shape).to(dtype),), dynamic_shapes=(dims,) if shape else None, strict=False
        )


def counted(model: Any, x: Tensor) -> Tensor:
    model.count.add_(1)
    return model.conv(x)


def used_before(model: Any, x: Tensor) -> Tensor:
    y = model.conv(x)
    return y.mean((2, 3)) + torch.relu_(y).mean((2, 3))


def through_a_view(model: Any, x: Tensor) -> Tensor:
    y = model.conv(x)
    z = y.permute(0, 2, 3, 1)
    torch.relu_(z)
    return y


def widened(model: Any, x: Tensor) -> Tensor:
    y = model.linear(x)
    y.mul_(y.double().relu())
    return y


@pytest.mark.parametrize(
    ("function", "shape", "free"),
    [
        (lambda _, x: torch.relu_(x), (2, 4), (0,)),
        (used_before, (2, 3, 5, 5), (0,)),
        (through_a_view, (2, 3, 5, 5), (0,)),
        (widened, (2, 4), (0,)),
        (counted, (2, 3, 5, 5), (0,)),
        (lambda model, x: model.plain(model.conv(x)), (2, 3, 5, 5), (0,)),
        (lambda model, x: F.adaptive_avg_pool2d(model.conv(x), 2), (2, 3, 5, 5), (0,)),
        (lambda model, x: model.conv(x).flatten(1), (2, 3, 5, 5), (0, 2, 3)),
        (lambda model, x: model.conv(x).flatten(2), (2, 3, 5, 5), (0,)),
        (lambda model, x: model.conv(x).flatten(), (2, 3, 5, 5), (0,)),
        (lambda model, x: model.conv(x).cumsum(1), (2, 3, 5, 5), (0,)),
    ],
)
def test_what_needs_decomposing_is_left_as_it_was(function: Any, shape: tuple[int, ...], free: tuple[int, ...]) -> None:
    """In-place operators whose operand others see, state that is written, and forms that have no operator of ONNX."""
    program = traced(function, *shape, free=free)
    before = str(program.graph)
    assert not made_direct_(program)
    assert str(program.graph) == before


def test_operators_in_place_become_others() -> None:
    """Where nobody sees what they overwrite, they compute the same as those that make new tensors."""
    program = traced(
        lambda model, x: torch.relu_(model.norm(model.conv(x))).mul_(x.mean((1, 2, 3), keepdim=True)), 2, 3, 5, 5
    )
    x = torch.randn(2, 3, 5, 5)
    expected = program.module()(x.clone())
    assert made_direct_(program)
    targets = {str(node.target) for node in program.graph.nodes}
    assert {"aten.relu.default", "aten.mul.Tensor"} <= targets
    assert not {"aten.relu_.default", "aten.mul_.Tensor"} & targets
    torch.testing.assert_close(program.module()(x), expected)


def workload_of(model: nn.Module) -> Any:
    x = torch.randn(6, 3, 16, 16)
    return same_data(model, [(x, torch.arange(6) % 4)], x[:2])


def test_a_file_is_the_same_with_and_without_decomposing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte, names and constants included, and with the same sizes free."""
    torch.manual_seed(0)
    model, right = Everything().eval(), exporters.write
    ways: list[bool] = []

    def write(*given: Any, direct: bool = True, **settings: Any) -> Any:
        written = right(*given, direct=direct and not ways, **settings)
        ways.append(written.direct)
        return written

    monkeypatch.setattr(export, "write", write)
    files = [export_onnx(model, workload_of(model)) for _ in range(2)]
    assert ways == [True, False]
    assert files[0].onnx_bytes == files[1].onnx_bytes
    assert files[0] == files[1]


@pytest.mark.parametrize("broken", ["raises", "is wrong"])
def test_the_long_way_is_gone_where_the_short_one_fails(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Another version of torch may have other operators: a file that does not pass is written anew."""

    def wrong(program: Any, **settings: Any) -> Any:
        if broken == "raises":
            raise RuntimeError
        for node in program.graph.nodes:
            if node.target is torch.ops.aten.relu.default:
                node.target = torch.ops.aten.sigmoid.default
        return torch.onnx.export(program, dynamo=True, **settings)

    monkeypatch.setattr(exporters, "write_direct_", wrong)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    x = torch.randn(6, 4)
    exported = export_onnx(model, same_data(model, [(x, torch.arange(6) % 3)], x[:2]))
    assert (exported.exporter, exported.notes) == ("dynamo", ())


def test_the_table_of_translations_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take copies of it: what one adds is not in the next, and outside torch builds its own again."""
    built = []
    build = vars(_registration.ONNXRegistry)["from_torchlib"].__func__

    def counted(cls, opset_version=18):
        built.append(opset_version)
        return build(cls, opset_version)

    monkeypatch.setattr(_registration.ONNXRegistry, "from_torchlib", classmethod(counted))
    with one_table():
        first, second = (_registration.ONNXRegistry.from_torchlib(20) for _ in range(2))
        one = next(iter(second.functions))
        known = len(second.functions[one])
        first.functions[one].append(first.functions[one][0])  # as a translation of one's own is added
        third = _registration.ONNXRegistry.from_torchlib(20)
    assert built == [20]
    assert len(first.functions[one]) == known + 1
    assert len(third.functions[one]) == len(second.functions[one]) == known
    assert first.opset_version == third.opset_version == 20
    _registration.ONNXRegistry.from_torchlib(20)
    assert built == [20, 20]


def test_programs_written_as_they_are_have_the_same_translations_from_a_small_table() -> None:
    """What they are made of is translated as by the whole table, which takes a second to build."""
    with one_table():
        whole = _registration.ONNXRegistry.from_torchlib(20).functions
    with one_table(direct=True):
        small = _registration.ONNXRegistry.from_torchlib(20).functions
    names = {target.name() for target in direct_programs._KNOWN} & {*whole}
    assert len(names) > 30
    assert len(small) < len(whole) / 3
    for name in names:
        assert [each.onnx_function.name for each in small[name]] == [each.onnx_function.name for each in whole[name]]
