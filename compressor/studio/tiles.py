"""What a choice costs and loses, in the words of the page's tiles."""

from collections.abc import Callable
from typing import Any

from compressor.estimate import Estimate
from compressor.report.numbers import si, size
from compressor.studio.choice import Choice
from compressor.studio.foresight.recovery import Recovery
from compressor.studio.whatif import Judged, Numbers


def cost_tiles(now: Numbers, before: Numbers) -> list[dict[str, Any]]:
    """A tile for each cost of a choice, beside the model before."""
    rows: tuple[tuple[str, float | None, float | None, Callable[[float], str]], ...] = (
        ("milliseconds a call", now.ms, before.ms, lambda value: f"{value:.3g} ms"),
        ("file", now.size_bytes, before.size_bytes, lambda value: size(round(value))),
        ("packed file", now.packed_bytes, before.packed_bytes, lambda value: size(round(value))),
        ("parameters", now.parameters, before.parameters, si),
        ("multiply-accumulates", now.macs, before.macs, si),
    )
    return [
        {
            "label": label,
            "value": "…" if value is None else words(value),
            "before": "…" if whole is None else words(whole),
            "left": f"{value / whole:.0%}" if value is not None and whole else "",
            "bar": round(100 * min(1.0, value / whole), 1) if value is not None and whole else 0,
            "better": value is not None and whole is not None and value < 0.995 * whole,
            "rough": now.rough and label.startswith("milliseconds"),
        }
        for label, value, whole, words in rows
    ]


def judged_in_words(judged: Judged) -> dict[str, Any]:
    """What was measured of a choice: the score that is left, and the drop."""
    return {
        "score": f"{judged.score.value:.3f}",
        "samples": f"{judged.samples:,}",
        **drop_in_words(judged.drop),
    }


def drop_in_words(drop: Estimate) -> dict[str, Any]:
    """How the score changes: with its sign, so that what is lost has a minus."""
    return {
        "drop": f"{-drop.value:+.3f}",
        "interval": "" if drop.low == drop.high else f"{-drop.high:+.3f} to {-drop.low:+.3f}",
        "bad": drop.low > 0,
    }


def trained_in_words(choice: Choice, recovery: Recovery | None, drop: Estimate | None) -> dict[str, Any] | None:
    """What will be left of `drop` behind the training, by the finished runs; None where nothing can be said."""
    if drop is None or not choice.epochs or not (choice.widths or choice.drop):
        return None
    if recovery is None:
        return {"by": "no run of this model has shown yet what training wins back", "runs": 0}
    few, many = recovery.epochs
    shares = f"{min(recovery.shares):.0%} to {max(recovery.shares):.0%}"
    runs = len(recovery.shares)
    over = f"{few} epochs" if few == many else f"{few} to {many} epochs"
    return {
        **drop_in_words(recovery.after(drop)),
        "by": f"if training wins back {shares} of it, as in {runs} run{'s' * (runs > 1)} over {over}",
        "runs": runs,
    }
