"""The number format and memory layout in which torch computes fastest on a device, and the way back."""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from compressor.batches import Inputs, Targets, map_targets, map_tensors
from compressor.target import BFLOAT16, cpu_flags
from compressor.workload import predict

_IMAGE_LAYERS = (nn.Conv2d, nn.ConvTranspose2d)


@dataclass(frozen=True, kw_only=True)
class AutoPrecision:
    """bfloat16 in the inner layers where the device multiplies it in hardware and the first batch agrees; else float32.

    Agreement is that of the model's outputs in both formats, and of the loss where targets are no classes. Whatever the
    inner layers take, the layers that make the outputs, the loss and the score that chooses the epoch are float32.
    """

    insists: ClassVar[bool] = False
    declines: ClassVar[str] = "the device does not multiply bfloat16 in hardware"

    def asks_for_bfloat16(self, device: torch.device) -> bool:
        """Whether inner layers on `device` are to be computed in bfloat16 where that agrees."""
        return has_bfloat16(device)


@dataclass(frozen=True, kw_only=True)
class Float32:
    """float32 everywhere."""

    insists: ClassVar[bool] = False
    declines: ClassVar[str] = "asked for"

    def asks_for_bfloat16(self, _device: torch.device) -> bool:
        """Never."""
        return False


@dataclass(frozen=True, kw_only=True)
class BFloat16:
    """bfloat16 in the inner layers, on whatever device; a model whose first batch does not agree in it is refused."""

    insists: ClassVar[bool] = True
    declines: ClassVar[str] = ""

    def asks_for_bfloat16(self, _device: torch.device) -> bool:
        """Always."""
        return True


Precision = AutoPrecision | Float32 | BFloat16


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a model is computed: on which device, whether under bfloat16 autocast, whether in channels_last layout.

    Under autocast the layers named `float32_layers`, those that make the outputs, stay in float32. A form is chosen by
    what the device, the model and the first batch say, never by timing, so that one seed gives the same bits twice.
    """

    device: torch.device
    bfloat16: bool = False
    channels_last: bool
    float32_layers: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> "Form":
        """The form in which `model` is computed in its own type: channels_last where there is a Conv2d."""
        parameters = list(model.parameters())
        return cls(
            device=parameters[0].device if parameters else torch.device("cpu"),
            channels_last=any(isinstance(module, _IMAGE_LAYERS) for module in model.modules()),
        )

    def autocast(self) -> torch.autocast:
        """The context in which forward passes run."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16)

    def exact(self) -> torch.autocast:
        """The context in which losses are computed: autocast is off, whatever surrounds it."""
        return torch.autocast(self.device.type, enabled=False)

    def place(self, inputs: Inputs) -> Inputs:
        """`inputs` on the device, images (4-D tensors) in the layout of the form."""
        return map_tensors(inputs, self._place)

    def place_targets(self, targets: Targets) -> Targets:
        """`targets` on the device."""
        return map_targets(targets, lambda tensor: tensor.to(self.device))

    def predict(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """The judged output of `model` for `inputs` as the file that ships computes it: without autocast."""
        with self.exact():
            return at_least_float32(predict(model, self.place(inputs)))

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """`model` with its convolutions' weights in the form's layout; their former strides are back afterwards.

        Under bfloat16, `float32_layers` are computed in float32, and so are depthwise convolutions with a stride: their
        gradient takes four to five times as long in bfloat16 (oneDNN, AMX), most of the training of a MobileNet.
        """
        weights = [
            weight
            for module in model.modules()
            # A parametrized layer computes its weight: there is no tensor to lay out.
            if self.channels_last and isinstance(module, _IMAGE_LAYERS)
            if (weight := module._parameters.get("weight")) is not None  # noqa: SLF001 - nn.Module has no public way to ask for own parameters by name
        ]
        strides = [weight.stride() for weight in weights]
        for weight in weights:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        exact = {model.get_submodule(name) for name in self.float32_layers if self.bfloat16}
        exact |= {module for module in model.modules() if self.bfloat16 and _is_strided_depthwise(module)}
        own = {module: vars(module).get("forward") for module in exact}
        for module in exact:
            module.forward = self._float32(module.forward)  # put back below
        try:
            yield
        finally:
            for module, forward in own.items():
                del module.forward
                if forward is not None:
                    module.forward = forward
            for weight, stride in zip(weights, strides, strict=True):
                if weight.stride() != stride:
                    # .contiguous() keeps channels_last strides on a 1x1 kernel, and later layers would follow them.
                    former = torch.empty_strided(weight.shape, stride, dtype=weight.dtype, device=weight.device)
                    weight.data = former.copy_(weight.data)

    def _float32(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def computed(*args: Any, **kwargs: Any) -> Any:
            with self.exact():
                return forward(
                    *(_long_enough(value) for value in args),
                    **{name: _long_enough(value) for name, value in kwargs.items()},
                )

        return computed

    def _place(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.device)
        if self.channels_last and tensor.ndim == 4 and tensor.is_floating_point():
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor


def _is_strided_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1 and max(module.stride) > 1


def _long_enough(value: Any) -> Any:
    return at_least_float32(value) if isinstance(value, Tensor) else value


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor` in float32 where it was shorter: sums of many bfloat16 terms lose all their digits."""
    return tensor.float() if tensor.dtype in {torch.bfloat16, torch.float16} else tensor


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call] # torch does not annotate it
        return False
    # macOS reports no flags; its oneDNN build has no bfloat16 kernels either.
    return platform.system() != "Darwin" and bool(cpu_flags() & BFLOAT16.keys())
