"""What a run remembers of its exports: the files of the states it has, and that free sizes took too long."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from compressor.workload import Workload

# The reference, the state that a stage begins with, and what is tried beside them.
_KEPT = 4


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A verified ONNX file, who wrote it ("dynamo", "torchscript" or "onnx"), its opset, and what to know of it."""

    onnx_bytes: bytes
    exporter: str
    opset: int
    notes: tuple[str, ...]


@dataclass(kw_only=True)
class ExportMemory:
    """The last files that were exported for `workload`, each found again by the content of its model alone.

    `identify` gives a digest of all that a model is, its code and attributes as well as its weights, and None where
    that cannot be known: such a model is exported every time. `ended` is the limit at which an exporter was ended with
    free sizes, "" as long as none was: later states of a network are not tried to the same end.
    """

    workload: Workload
    identify: Callable[[nn.Module], str | None]
    ended: str = ""
    _files: OrderedDict[str, Exported] = field(default_factory=OrderedDict)

    def serves(self, workload: Workload) -> bool:
        """Whether exports for `workload` are written and verified as those for the run's own."""
        own = self.workload
        return (
            workload.example_inputs is own.example_inputs
            and workload.calibration is own.calibration
            and workload.free_sizes == own.free_sizes
            and workload.export_seconds == own.export_seconds
        )

    def find(self, model: nn.Module) -> tuple[str | None, Exported | None]:
        """The digest of `model`, and its file, None where none is known."""
        key = self.identify(model)
        if key is None or key not in self._files:
            return key, None
        self._files.move_to_end(key)
        return key, self._files[key]

    def keep(self, key: str | None, exported: Exported) -> None:
        """Remembers the file of the model with the digest `key`."""
        if key is None:
            return
        self._files[key] = exported
        self._files.move_to_end(key)
        while len(self._files) > _KEPT:
            self._files.popitem(last=False)
