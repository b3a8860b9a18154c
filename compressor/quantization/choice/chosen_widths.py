"""How many bits the weights of layers get, as somebody chose them: by looking, or read from another run."""

import re
from dataclasses import dataclass, replace

from compressor.checks import did_you_mean
from compressor.errors import StageError
from compressor.notes.quantization import LayerSensitivity, Sensitivities
from compressor.quantization.choice.sensitivity import scheme_of_width
from compressor.quantization.grids.weights import nearest_grids
from compressor.quantization.placement.policy import matches
from compressor.quantization.post_training import Prepared
from compressor.stage import Context
from compressor.workload import Workload

_FLOAT = 32
_WIDTH = re.compile(r"(.+)=(\d{1,2})")


@dataclass(frozen=True, kw_only=True)
class ChosenWidths:
    """Weights of the widths that `layers` say, texts such as "layer1.*=4" or "linear=32", at least one.

    The name is a glob over node names and module paths, as in `skip`; of several that fit, the last counts. Widths are
    2 to 8 bits, rounded to nearest where nothing is learned, or 32: the layer stays in float. Layers that no name fits
    have the width of `weights`. Fewer bits make the file smaller, not faster.
    """

    layers: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError('layers is empty; name a layer and its bits, layers=("linear=4",), or leave mixed out')
        for text in self.layers:
            found = _WIDTH.fullmatch(text)
            if found is None or not (2 <= int(found[2]) <= 8 or int(found[2]) == _FLOAT):
                raise ValueError(f"a width is written name=bits, 2 to 8 or 32 for float, as in linear=4; got {text!r}")

    def apply(self, prepared: Prepared, workload: Workload, context: Context) -> Prepared:
        """`prepared` with these widths, some layers in float.

        Raises StageError for a name that fits no layer, and for a layer whose integers are found at run time.
        """
        del workload, context
        wanted: dict[str, int] = {}
        static, dynamic = prepared.placement.static, (*prepared.placement.dynamic, *prepared.placement.weight_only)
        for text in self.layers:
            name, _, bits = text.rpartition("=")
            fitting = [node for node in (*static, *dynamic) if matches(node, name)]
            if not fitting:
                raise StageError(f"no layer in integers is called {name!r}{did_you_mean(name, static)}; leave it out")
            wanted |= dict.fromkeys(fitting, int(bits))
        unfit = [name for name in dynamic if wanted.get(name, _FLOAT) not in {_FLOAT, prepared.scheme.bits}]
        if unfit:
            raise StageError(
                f"{', '.join(unfit)}: layers whose ranges are found at run time have weights of "
                f"{prepared.scheme.bits} bits, or stay in float (32); give weights= for all of them"
            )
        floats = {name: "chosen: float" for name, bits in wanted.items() if bits == _FLOAT}
        rest = prepared.without(floats) if floats else prepared
        schemes = {
            name: scheme_of_width(prepared.scheme, bits)
            for name, bits in wanted.items()
            if bits != _FLOAT and name in static
        }
        told = [
            LayerSensitivity(node=name, bits=bits, reason="chosen", sqnr_db={}, size_bytes={})
            for name, bits in wanted.items()
        ]
        rest = rest.noting(Sensitivities(sensitivity=tuple(told)))
        return replace(rest, weights={**rest.weights, **nearest_grids(prepared.graph, schemes)})
