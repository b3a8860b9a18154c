"""The number format and memory layout in which torch computes fastest on a device, and the way back."""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.batches import Inputs, map_tensors
from compressor.target import BFLOAT16, cpu_flags
from compressor.workload import predict

_IMAGE_LAYERS = (nn.Conv2d, nn.ConvTranspose2d)


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a model is computed: on which device, whether under bfloat16 autocast, whether in channels_last layout.

    It is chosen by what the device and the model can do, never by timing, so that one seed gives the same bits twice.
    """

    device: torch.device
    bfloat16: bool
    channels_last: bool

    @classmethod
    def of(cls, model: nn.Module) -> "Form":
        """The fastest form for `model`.

        bfloat16 where the device has it natively, every weight is float32 and no recurrent layer is present (those
        have no bfloat16 kernels on CPUs); channels_last where there is a Conv2d.
        """
        parameters = list(model.parameters())
        device = parameters[0].device if parameters else torch.device("cpu")
        modules = list(model.modules())
        plain = all(parameter.dtype == torch.float32 for parameter in parameters if parameter.is_floating_point())
        recurrent = any(isinstance(module, nn.RNNBase | nn.RNNCellBase) for module in modules)
        return cls(
            device=device,
            bfloat16=bool(parameters) and plain and not recurrent and has_bfloat16(device),
            channels_last=any(isinstance(module, _IMAGE_LAYERS) for module in modules),
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

    def predict(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """The judged output of `model` for `inputs`, at least float32."""
        with self.autocast():
            return at_least_float32(predict(model, self.place(inputs)))

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """`model` with its convolutions' weights in the form's layout; their former strides are back afterwards.

        Under bfloat16, depthwise convolutions with a stride are computed in float32: their gradient takes four to five
        times as long in bfloat16 (oneDNN, AMX), most of the training of a MobileNet.
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
        slow = [module for module in model.modules() if self.bfloat16 and _is_strided_depthwise(module)]
        for module in slow:
            module.forward = self._float32(module.forward)  # deleted again below
        try:
            yield
        finally:
            for module in slow:
                del module.forward
            for weight, stride in zip(weights, strides, strict=True):
                if weight.stride() != stride:
                    # .contiguous() keeps channels_last strides on a 1x1 kernel, and later layers would follow them.
                    former = torch.empty_strided(weight.shape, stride, dtype=weight.dtype, device=weight.device)
                    weight.data = former.copy_(weight.data)

    def _float32(self, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def computed(x: Tensor) -> Tensor:
            with self.exact():
                return forward(x.float())

        return computed

    def _place(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.device)
        if self.channels_last and tensor.ndim == 4 and tensor.is_floating_point():
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor


def _is_strided_depthwise(module: nn.Module) -> bool:
    # A forward of its own is somebody's wrapper, which deleting would lose.
    return (
        isinstance(module, nn.Conv2d)
        and module.groups == module.in_channels > 1
        and max(module.stride) > 1
        and "forward" not in vars(module)
    )


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
