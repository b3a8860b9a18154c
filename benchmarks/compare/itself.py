"""A recipe compared with itself over seeds: how often a comparison declares a difference where there is none.

    python -m benchmarks.compare.itself [--tries 40] [--seeds 3] [--epochs 1] [--out DIR]

The digits' network with a part of its channels gone is trained again, under other seeds each time. A try compares two
groups of seeds by the verdict of `compressor compare`; at most 5 % of the tries should tell them apart. Beside it stand
the rate over many more groups drawn from the same trainings, which overlap, and how often any pair of twelve groups is
told apart after Holm's correction. Scores are those of the trained models, sample by sample, on test data. Trainings
that have ended are kept in DIR.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.stored import RESULTS
from compressor.batches import judged_target
from compressor.comparing.significance import LEVEL, told_apart
from compressor.kept_state import private_copy
from compressor.machine import environment
from compressor.metrics import Metric
from compressor.progress.bars import progress_bar
from compressor.stage import Context
from compressor.stages import FineTune, PruneChannels
from compressor.storage import write_json
from compressor.target import Target
from compressor.workload import Workload, batches_of, predict
from compressor.workloads.digits import digits

RESULT = RESULTS / "compare-itself.json"
GOAL = 0.05
_DRAWN, _FAMILIES, _FAMILY = 1000, 200, 12
Trainings = Sequence[Tensor]


def main() -> None:
    """Trains what is not trained yet, compares, and stores what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--remove", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-compare-itself"))
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    workload = digits(progress=False)
    folder = options.out / f"remove-{options.remove}-epochs-{options.epochs}"
    rows = trained(workload, options.tries * 2 * options.seeds, folder, remove=options.remove, epochs=options.epochs)
    found = told(rows, workload.metric, tries=options.tries, seeds=options.seeds)
    asked = {name: getattr(options, name) for name in ("tries", "seeds", "epochs", "remove")}
    where = environment(Target())
    write_json(options.result, {"benchmark": "compare-itself", "environment": where, **asked, **found})
    print(line(options.tries, found))


def trained(workload: Workload, count: int, folder: Path, *, remove: float, epochs: int) -> list[Tensor]:
    """How the model scores on every test sample, (samples,), after training under each of so many seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    context = Context(progress=False)
    narrow = PruneChannels(remove=remove).apply(private_copy(workload.model), workload, context)
    plan = tuple(context.plan)
    found = []
    for seed in progress_bar(range(count), desc="training", unit="seed", shown=True):
        path = folder / f"{seed}.json"
        if not path.exists():
            torch.manual_seed(seed)
            stage = FineTune(epochs=epochs, tail_epochs=0)
            model = stage.apply(private_copy(narrow), workload, Context(seed=seed, progress=False, plan_before=plan))
            write_json(path, scored(model.eval(), workload).tolist())
        found.append(torch.tensor(json.loads(path.read_text())))
    return found


def scored(model: torch.nn.Module, workload: Workload) -> Tensor:
    """The metric's rows on test data, (samples,)."""
    with torch.no_grad():
        rows = [
            workload.metric.rows(predict(model, inputs), torch.as_tensor(judged_target(targets)))
            for inputs, targets in batches_of(workload.test)
        ]
    return torch.cat(rows)


def told(rows: Trainings, metric: Metric, *, tries: int, seeds: int) -> dict[str, Any]:
    """How often two groups of `seeds` trainings are told apart, of those that share none, and of those drawn anew."""
    groups = [list(rows[at : at + seeds]) for at in range(0, len(rows), seeds)]
    p_values = [_p(groups[2 * number], groups[2 * number + 1], metric) for number in range(tries)]
    chance = random.Random(0)  # noqa: S311 - draws, not secrets
    drawn = [chance.sample(range(len(rows)), 2 * seeds) for _ in range(_DRAWN)]
    apart = [_p(_of(rows, each[:seeds]), _of(rows, each[seeds:]), metric) < LEVEL for each in drawn]
    alone = [_p([rows[one]], [rows[other]], metric) < LEVEL for one, other, *_ in drawn]
    families = [
        _family(rows, chance.sample(range(len(rows)), _FAMILY * seeds), metric, seeds) for _ in range(_FAMILIES)
    ]
    scores = torch.stack([each.double().mean() for each in rows])
    return {
        "told_apart": sum(p < LEVEL for p in p_values),
        "p_values": [round(p, 4) for p in p_values],
        "drawn": {
            "tries": _DRAWN,
            "share": round(sum(apart) / _DRAWN, 4),
            "single_files": round(sum(alone) / _DRAWN, 4),
        },
        "families": {"tries": _FAMILIES, "groups": _FAMILY, "share": round(sum(families) / _FAMILIES, 4)},
        "score": {"mean": round(float(scores.mean()), 4), "deviation": round(float(scores.std()), 4)},
        "goal": GOAL,
    }


def _p(one: Sequence[Tensor], other: Sequence[Tensor], metric: Metric) -> float:
    return told_apart({"one": one, "other": other}, metric)["one", "other"]


def _family(rows: Trainings, drawn: Sequence[int], metric: Metric, seeds: int) -> bool:
    """Whether any two of several groups are told apart after Holm's correction."""
    groups = {str(at): _of(rows, drawn[at : at + seeds]) for at in range(0, len(drawn), seeds)}
    return any(p < LEVEL for p in told_apart(groups, metric).values())


def _of(rows: Trainings, numbers: Sequence[int]) -> list[Tensor]:
    return [rows[number] for number in numbers]


def line(tries: int, found: dict[str, Any]) -> str:
    """What came of it."""
    return (
        f"a recipe against itself: told apart in {found['told_apart']} of {tries} tries (at most {GOAL:.0%} wanted), "
        f"{found['drawn']['share']:.1%} of groups drawn anew, {found['families']['share']:.1%} of families of "
        f"{found['families']['groups']}; single files, which are not the recipe: {found['drawn']['single_files']:.1%}"
    )


if __name__ == "__main__":
    main()
