"""What recovery by defaults does to eight kinds of small networks after a mild prune, beside a loop written by hand.

    python -m benchmarks.training_harm [--cases NAME ...] [--seeds 206 207 208] [--out DIR]

Every network is trained by hand until validation stands still, pruned, and recovered four ways: by `FineTune()`, by
`Distill()`, and by hand for as many epochs as each. The hand loop has a cosine from the rate that is best on validation
among the one that the network's training began at, a third and a tenth of it, and keeps its best epoch on validation as
ours do. Scores are of test data that nothing decided on; drops against the hand loop are paired over the test samples
of all seeds, of which each has its own. Beyond noise is what stays below 5 % after Holm's correction for all
comparisons of the table; what is beyond its own interval alone is told too.

The rule by which a network is trained, whatever it is: a constant rate; where PATIENCE epochs in a row were not better
on validation than the best before, on from the best epoch at a third of the rate; the best epoch after the last of
DESCENT, or after MOST epochs. It was fixed before any of the seeds of the table was used, and no test score is read.
A second part trains regressions whose targets lie around an offset, in the number format that is chosen by itself and
in float32. A killed run goes on where it was; what is ours is computed again where the code that trains is another.
"""

import argparse
import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.data.small_networks import CASES, Case, regression
from benchmarks.stored import RESULTS
from compressor.comparing.significance import LEVEL, p_value
from compressor.intervals import holm, paired_drop, score_estimate
from compressor.kept_state import private_copy
from compressor.machine import environment
from compressor.stage import Context
from compressor.stages import Distill, FineTune, Float32, PruneChannels
from compressor.storage import read_json, sha256, write_json
from compressor.target import Target
from compressor.training.replay import replayed
from compressor.workload import Workload, batches_of, predict
from workbench import ROOT

RESULT = RESULTS / "training-harm.json"
SEEDS = (206, 207, 208)
PARTS = (1.0, 1 / 3, 1 / 10)
PATIENCE, DESCENT, MOST = 20, (1.0, 1 / 3, 1 / 9), 300
OFFSETS = (0.0, 1.0, 1e2, 1e3, 1e4, 1e5)
# Each of ours, and the hand loop of as many epochs that it is compared with.
BESIDE = {"fine_tune": "hand_6", "distill": "hand_9"}


def rows(model: nn.Module, data: Iterable[Any], workload: Workload) -> Tensor:
    """The metric's row of every sample of `data`."""
    with torch.no_grad():
        return torch.cat(
            [workload.metric.rows(predict(model.eval(), inputs), targets) for inputs, targets in batches_of(data)]
        )


def optimizer_of(model: nn.Module, case: Case, rate: float) -> torch.optim.Optimizer:
    if case.adaptive:
        return torch.optim.AdamW(model.parameters(), lr=rate)
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)


def epoch_(model: nn.Module, workload: Workload, step: Callable[[], object]) -> float:
    """Trains an epoch, with `step` after every gradient: the score on validation, higher is better."""
    model.train()
    for inputs, targets in workload.train:
        model.zero_grad()
        workload.loss(model(inputs), targets).backward()
        step()
    score = workload.metric.aggregate(rows(model, workload.validation, workload))
    return score if workload.metric.higher_is_better else -score


def until_still_(model: nn.Module, case: Case, seed: int) -> dict[str, int]:
    """Trains `model` by the rule above and leaves it at its best epoch: how many epochs there were, and the best."""
    best, best_score, best_epoch, done = capture(model), -float("inf"), 0, 0
    with replayed(seed, 0):
        for part in DESCENT:
            model.load_state_dict(best)
            optimizer, since = optimizer_of(model, case, case.rate * part), 0
            while since < PATIENCE and done < MOST:
                score, done, since = epoch_(model, case.workload, optimizer.step), done + 1, since + 1
                if score > best_score:
                    best, best_score, best_epoch, since = capture(model), score, done, 0
    model.load_state_dict(best)
    model.eval()
    return {"epochs": done, "best": best_epoch}


def by_hand(model: nn.Module, case: Case, rate: float, epochs: int, seed: int) -> tuple[nn.Module, float]:
    """`model` recovered as a practitioner does it, at its best epoch on validation, and the score there."""
    workload, recovered = case.workload, copy.deepcopy(model)
    optimizer = optimizer_of(recovered, case, rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(workload.train))

    def step() -> None:
        optimizer.step()
        schedule.step()

    best, best_score = capture(recovered), -float("inf")
    with replayed(seed, 0):
        for _ in range(epochs):
            score = epoch_(recovered, workload, step)
            if score > best_score:
                best, best_score = capture(recovered), score
    recovered.load_state_dict(best)
    return recovered.eval(), best_score if workload.metric.higher_is_better else -best_score


def capture(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def swept(model: nn.Module, case: Case, epochs: int, seed: int) -> tuple[nn.Module, float]:
    """The best by validation of the hand loops at all rates of the sweep, and its rate."""
    tried = [(by_hand(model, case, case.rate * part, epochs, seed), case.rate * part) for part in PARTS]
    sign = 1 if case.workload.metric.higher_is_better else -1
    (best, _), rate = max(tried, key=lambda entry: sign * entry[0][1])
    return best, rate


def trained(name: str, seed: int, out: Path) -> tuple[Case, dict[str, int]]:
    """The network `name`, trained by hand, and how long; `out` keeps both."""
    case, path = CASES[name](seed), out / f"{_file(name, seed)}.safetensors"
    model, facts = case.workload.model, path.with_suffix(".json")
    if not facts.exists():
        told = until_still_(model, case, seed)
        save_file(capture(model), path)
        write_json(facts, told)
    model.load_state_dict(load_file(path))
    model.eval()
    return case, read_json(facts)


def pruned_of(case: Case, seed: int) -> nn.Module:
    context = Context(seed=seed, progress=False)
    stage = PruneChannels(remove=case.remove, align=1)
    return stage.apply(private_copy(case.workload.model), case.workload, context).eval()


def rows_on_test(model: nn.Module, workload: Workload) -> list[float]:
    return [float(row) for row in rows(model, workload.test, workload)]


def hand_part(case: Case, seed: int) -> dict[str, Any]:
    """The rows on test data of the network before and after pruning, and of the hand loops, whose rates are told."""
    workload, pruned = case.workload, pruned_of(case, seed)
    found = {"reference": rows_on_test(workload.model, workload), "pruned": rows_on_test(pruned, workload)}
    told = {}
    for stage in (FineTune(), Distill()):
        epochs = stage.epochs + stage.tail_epochs
        model, rate = swept(pruned, case, epochs, seed)
        found[f"hand_{epochs}"], told[f"hand_{epochs}"] = rows_on_test(model, workload), {"rate": rate}
    return {"told": told, "rows": found}


def our_part(case: Case, seed: int) -> dict[str, Any]:
    """The rows on test data of both recoveries by defaults, and what was told of them."""
    workload, found, told = case.workload, {}, {}
    for stage, label in ((FineTune(), "fine_tune"), (Distill(), "distill")):
        context = Context(seed=seed, progress=False)
        model = stage.apply(private_copy(pruned_of(case, seed)), workload, context)
        training = context.details["trainings"][-1]
        found[label] = rows_on_test(model, workload)
        told[label] = {key: training.get(key) for key in ("optimizer", "rate", "rate_from", "failed")}
    return {"told": told, "rows": found}


def one(name: str, seed: int, out: Path) -> dict[str, Any]:
    """All rows of one network and one seed; `out` keeps what is done."""
    (case, how_long), parts = trained(name, seed, out), []
    for part, state in ((hand_part, ""), (our_part, code())):
        path = out / f"{_file(name, seed)}-{part.__name__}{state}.json"
        if not path.exists():
            write_json(path, part(case, seed))
        parts.append(read_json(path))
    told = {"reference": how_long} | parts[0]["told"] | parts[1]["told"]
    return {"told": told, "rows": parts[0]["rows"] | parts[1]["rows"]}


def code() -> str:
    """A name for the state of the code that trains: rows of two states do not belong into one table."""
    files = [*sorted((ROOT / "compressor" / "training").rglob("*.py"))]
    files += [ROOT / "compressor" / "stages" / f"{stage}.py" for stage in ("fine_tuning", "distillation")]
    return f"-{sha256(b''.join(file.read_bytes() for file in files))[:12]}"


def _file(name: str, seed: int) -> str:
    return f"{name.replace(' ', '_').replace(',', '')}-{seed}"


def summary(name: str, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Scores of every way over the test samples of all seeds, and the drops of ours against the hand loop."""
    metric = CASES[name](0).workload.metric
    pooled = {
        way: torch.tensor([row for part in parts for row in part["rows"][way]], dtype=torch.float64)
        for way in parts[0]["rows"]
    }
    return {
        "name": name,
        "metric": metric.name,
        "samples": len(pooled["pruned"]),
        "scores": {way: asdict(score_estimate(values, metric)) for way, values in pooled.items()},
        "drops": {ours: asdict(paired_drop(pooled[ours], pooled[hand], metric)) for ours, hand in BESIDE.items()},
        "p_values": {ours: p_value([pooled[ours]], [pooled[hand]], metric) for ours, hand in BESIDE.items()},
        "told": [part["told"] for part in parts],
    }


def offset_row(offset: float, seed: int) -> dict[str, float]:
    """The mean squared error of a regression around `offset`, before and after trainings in both number formats."""
    workload = regression(offset, seed)
    found = {"before": float(F.mse_loss(*_outputs(workload.model, workload)))}
    for label, settings in (("auto", {}), ("float32", {"precision": Float32()})):
        context = Context(seed=seed, progress=False)
        model = FineTune(epochs=3, **settings).apply(private_copy(workload.model), workload, context)
        found[label] = float(F.mse_loss(*_outputs(model, workload)))
    return found


def _outputs(model: nn.Module, workload: Workload) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        pairs = [(predict(model.eval(), inputs), targets) for inputs, targets in batches_of(workload.test)]
    outputs, targets = (torch.cat(part).double() for part in zip(*pairs, strict=True))
    return outputs, targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--offsets", nargs="*", type=float, default=list(OFFSETS))
    parser.add_argument("--out", type=Path, default=Path("runs/bench/training-harm"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    kinds = []
    for name in arguments.cases:
        kinds.append(summary(name, [one(name, seed, arguments.out) for seed in arguments.seeds]))
        print_row(kinds[-1])
    offsets = []
    for offset in arguments.offsets:
        path = arguments.out / f"offset-{offset:g}{code()}.json"
        if not path.exists():
            row = offset_row(offset, 0)
            write_json(path, {"offset": offset, **row, "ratio": row["auto"] / row["float32"]})
        offsets.append(read_json(path))
        print(offsets[-1], flush=True)
    comparisons, alone, worse = worse_of(kinds)
    write_json(
        RESULT,
        {
            "benchmark": "training-harm",
            "seeds": arguments.seeds,
            "environment": environment(Target()),
            "networks": kinds,
            "offsets": offsets,
            "comparisons": comparisons,
            "worse_alone": alone,
            "worse": worse,
            "worse_counts": {ours: sum(entry["by"] == ours for entry in worse) for ours in BESIDE},
        },
    )
    print(f"stored in {RESULT}")


def worse_of(kinds: Sequence[dict[str, Any]]) -> tuple[int, list[dict[str, Any]], list[dict[str, Any]]]:
    """(how many comparisons there are, those worse beyond their own interval, those still so after Holm's correction).

    Of so many comparisons at 95 % some are beyond their interval by chance alone.
    """
    compared = [(kind, ours) for kind in kinds for ours in BESIDE]
    corrected = holm([kind["p_values"][ours] for kind, ours in compared])
    alone = [
        {"network": kind["name"], "by": ours, "p_value": kind["p_values"][ours], "corrected": p}
        for (kind, ours), p in zip(compared, corrected, strict=True)
        if kind["drops"][ours]["low"] > 0
    ]
    return len(compared), alone, [entry for entry in alone if entry["corrected"] < LEVEL]


def print_row(kind: dict[str, Any]) -> None:
    scores = "  ".join(f"{way} {score['value']:.4f}" for way, score in kind["scores"].items())
    drops = "  ".join(
        f"{ours} {drop['value']:+.4f} [{drop['low']:+.4f}, {drop['high']:+.4f}]" for ours, drop in kind["drops"].items()
    )
    print(f"{kind['name']:24s} {scores}\n{'':24s} worse than by hand: {drops}", flush=True)


if __name__ == "__main__":
    main()
