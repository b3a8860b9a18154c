"""Reports over several runs, comparisons and folds, for the tests of what is shown."""

from compressor.estimate import Estimate
from compressor.report.comparison import ComparisonRow
from compressor.report.folds.record import FoldRow, FoldsRecord


def four_recipes() -> list[ComparisonRow]:
    """A reference and four recipes, two of which lie so near together that their labels have to part."""
    rows = []
    for name, times, kib, score, met in (
        ("reference", 1.0, 3342, 0.899, None),
        ("int8", 2.1, 881, 0.898, True),
        ("prune_distill_int8", 6.1, 283, 0.894, True),
        ("drop_blocks_distill_int8", 6.0, 277, 0.893, True),
        ("prune_only", 2.2, 1434, 0.87, False),
    ):
        first, drop, ms = met is None, 0.899 - score, 3.2 / times
        rows.append(
            ComparisonRow(
                name=name,
                score=Estimate(score, score - 0.012, score + 0.012),
                drop=None if first else Estimate(drop, drop - 0.02, drop + 0.02),
                latency_ms=Estimate(ms, 0.96 * ms, 1.04 * ms),
                speedup=Estimate(1.0, 1.0, 1.0) if first else Estimate(times, 0.96 * times, 1.04 * times),
                size_bytes=kib * 1024,
                compressed_bytes=kib * 900,
                seconds=0.0 if first else 123.0,
                pareto=name not in {"reference", "prune_only"},  # another is faster, smaller and better
                report=None if first else f"{name}/report.html",
                budget_met=met,
            )
        )
    return rows


def fold(name: str, reference: float, score: float, **changed) -> FoldRow:
    """One fold of 50 tested samples and 100 others, with intervals of 0.05 for scores and 0.03 for the drop."""
    drop = reference - score
    return FoldRow(
        **{
            "name": name,
            "tested": 50,
            "rest": 100,
            "split": name,
            "reference": Estimate(reference, reference - 0.05, reference + 0.05),
            "score": Estimate(score, score - 0.05, score + 0.05),
            "drop": Estimate(drop, drop - 0.03, drop + 0.03),
            "speedup": Estimate(2.0, 1.9, 2.1),
            "size_bytes": 2048,
            "reference_bytes": 8192,
            "seconds": 12.0,
            "budget_met": True,
            "kept": True,
            "report": f"{name}/report.html",
            **changed,
        }
    )


def three_folds() -> FoldsRecord:
    """Drops of 2, 4 and 6 points; the third fold is over its budget."""
    return FoldsRecord(
        workload={"name": "three <b>", "metric": "accuracy"},
        folds=3,
        repeats=1,
        seed=0,
        given=False,
        budgeted=True,
        stages=("prune", "quantize"),
        rows=(fold("fold-1", 0.90, 0.88), fold("fold-2", 0.92, 0.88), fold("fold-3", 0.94, 0.88, budget_met=False)),
    )
