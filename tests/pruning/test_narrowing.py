"""What a network survives: rounding by kind, and reasons."""

import torch

from compressor.pruning.narrowing import gone_channels, multiple_of, survivors, why
from compressor.structure.couplings import Coupled


def group(name: str, width: int, kind: str = "channels") -> Coupled:
    return Coupled(name=name, width=width, parts=(), makes_output=False, opaque=False, kind=kind)


def test_what_is_harmless_alone_and_not_together_is_settled_in_order() -> None:
    """Of two that may not both go, the first goes."""
    first, second = group("first", 4), group("second", 4)
    gone = {first: [0], second: [1]}
    kept, faults = survivors(gone, lambda tried: "both" if len(tried) > 1 else None)
    assert kept == {first: [0]}
    assert faults == {"second": "both"}


def test_rounding_follows_the_kind() -> None:
    """Channels suit the kernels, recurrent units go in sixteenths, heads one by one."""
    assert multiple_of(group("a", 64), None, 16) == 16
    assert multiple_of(group("a", 64), 4, 16) == 4
    assert multiple_of(group("a", 256, "units"), None, 16) == 16
    assert multiple_of(group("a", 100, "units"), None, 16) == 4
    assert multiple_of(group("a", 4, "units"), None, 16) == 1
    assert multiple_of(group("a", 12, "heads"), 4, 16) == 1


def test_the_least_important_go_with_their_scores() -> None:
    """Of scores 1, 4, 2 and 3 the first and the third go, and the reason says so."""
    layer, scores = group("layer", 4), {"layer": torch.tensor([1.0, 4.0, 2.0, 3.0])}
    gone = gone_channels((layer, group("other", 8)), scores, {"layer": 2})
    assert gone == {layer: [0, 2]}
    reason = why(layer, "L1()", scores["layer"], gone[layer])
    assert (reason["kept_scores"], reason["removed_scores"]) == ([4.0, 3.0], [1.0, 2.0])
