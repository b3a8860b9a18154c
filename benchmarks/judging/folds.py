"""Cross-validation of two recipes on digits and spoken digits, and how often a recipe differs from itself.

    python -m benchmarks.judging.folds [--data digits speech] [--folds 5] [--partings 2] [--seeds 2] [--samples 0]
        [--epochs 8] [--tries 300] [--result FILE] [--out DIR]

Every parting cuts the samples into folds in another way; in each fold one reference is trained, and every recipe is run
under several seeds. Two seeds of one recipe in the same folds are a try: they differ by chance alone, and a try whose
interval excludes 0 has claimed a difference that is not there. Runs take minutes, so that these tries are few; those of
`--tries`, of networks that cost milliseconds (`verdicts`), say how often the test itself is wrong. Files are timed for
a moment: this is about scores. A killed benchmark goes on where it was. `--samples` takes the first so many, for a
trial.
"""

import argparse
import functools
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.aa import describe
from benchmarks.arms import slug
from benchmarks.judging import verdicts
from benchmarks.stored import RESULTS
from compressor import Fold, Pipeline, Workload
from compressor.machine import environment
from compressor.measuring import measure, timing
from compressor.pruning.choice.targets import Macs
from compressor.running.folds.crossing import CrossValidation
from compressor.stage import Stage
from compressor.stages import AdamW, FineTune, PruneChannels, Quantize
from compressor.storage import read_json, write_json
from compressor.target import Target

RESULT = RESULTS / "folds.json"


def recipes(epochs: int) -> dict[str, list[Stage]]:
    """Half of the multiply-accumulates and a short training, in float32 and in 8 bits."""
    pruned = [PruneChannels(target=Macs(0.5)), FineTune(epochs=epochs, optimizer=AdamW(rate=1e-3))]
    return {"prune, fine-tune": pruned, "prune, fine-tune, int8": [*pruned, Quantize()]}


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits, (1797, 1, 8, 8) in [0, 1]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.from_numpy(data.images).float()[:, None] / 16, torch.from_numpy(data.target).long()


def speech() -> tuple[Tensor, Tensor]:
    """Spoken digits as images of log-mel energies, (3000, 1, 61, 40), each standardized by itself.

    All six speakers are in every fold: scores are those for people who were heard in training.
    """
    from benchmarks.data.speech import read

    features, targets, _ = read()
    mean, deviation = features.mean(dim=(1, 2), keepdim=True), features.std(dim=(1, 2), keepdim=True)
    return ((features - mean) / deviation)[:, None], targets


DATA: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {"digits": digits, "speech": speech}


def network() -> nn.Module:
    """A plain CNN for images of one channel and ten classes."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )


def fit(model: nn.Module, inputs: Tensor, targets: Tensor, epochs: int) -> None:
    """A one-cycle training by AdamW in batches of 64."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    steps = epochs * -(-len(inputs) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
            schedule.step()


def workload(name: str, inputs: Tensor, targets: Tensor, *, epochs: int, out: Path) -> Callable[[Fold], Workload]:
    """The function of the fold; all recipes and seeds share its references, which lie in `out`."""

    def of_fold(fold: Fold) -> Workload:
        parts = fold.split(targets, validation=0.2)
        # The same fold with a folder that all runs share.
        shared = Fold(
            number=fold.number,
            folds=fold.folds,
            repeat=fold.repeat,
            repeats=fold.repeats,
            seed=fold.seed,
            folder=out / f"parting-{fold.seed}-{fold.name}",
        )
        shared.split(targets, validation=0.2)

        def train(model: nn.Module) -> None:
            fit(model, inputs[parts.train], targets[parts.train], 3 * epochs)

        sets = zip(("train", "validation", "test"), parts, strict=True)
        return Workload.from_datasets(
            shared.trained(network, train),
            **{part: (inputs[indices], targets[indices]) for part, indices in sets},
            batch_size=64,
            calibration_samples=128,
            name=name,
        )

    return of_fold


def crossed(stages: list[Stage], of_fold: Callable[[Fold], Workload], asked: dict[str, Any]) -> CrossValidation:
    return Pipeline(stages).cross_validate(of_fold, progress=False, **asked)


def verdicts_of(path: Path, asked: argparse.Namespace) -> Any:
    """What the cheap tries say, from `path` where they were made before."""
    if not path.exists():
        write_json(path, verdicts.tried(*digits(), tries=asked.tries, folds=asked.folds))
    return read_json(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="*", choices=list(DATA), default=list(DATA), help="none: the cheap tries alone")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--partings", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=2, help="of each recipe; any two are a try")
    parser.add_argument("--samples", type=int, default=0, help="the first so many; 0 for all")
    parser.add_argument("--epochs", type=int, default=8, help="of recovery; references train three times as long")
    parser.add_argument("--tries", type=int, default=300, help="on digits, of networks that cost milliseconds")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/folds"))
    arguments = parser.parse_args()
    measure.time_interleaved = functools.partial(timing.time_interleaved, seconds=0.05, repeats=3)
    told_of_test = verdicts_of(arguments.out / f"verdicts-{arguments.tries}-{arguments.folds}.json", arguments)
    found: dict[str, Any] = {}
    for name in arguments.data:
        inputs, targets = DATA[name]()
        count = arguments.samples or len(inputs)
        out = arguments.out / name
        of_fold = workload(name, inputs[:count], targets[:count], epochs=arguments.epochs, out=out / "references")
        runs: dict[str, list[list[CrossValidation]]] = {}
        for recipe, stages in recipes(arguments.epochs).items():
            runs[recipe] = [
                [
                    crossed(
                        stages,
                        of_fold,
                        {
                            "folds": arguments.folds,
                            "seed": parting,
                            "run_seed": 1000 * seed,
                            "out": out / slug(recipe) / f"parting-{parting}-seed-{seed}",
                        },
                    )
                    for seed in range(arguments.seeds)
                ]
                for parting in range(arguments.partings)
            ]
        found[name] = {"recipes": {recipe: told(recipe, partings) for recipe, partings in runs.items()}}
        first, second = (partings[0][0] for partings in runs.values())
        found[name]["second_below_first"] = vars(second.difference(first))
    settings = {key: getattr(arguments, key) for key in ("folds", "partings", "seeds", "samples", "epochs")}
    known = {"benchmark": "folds", "environment": environment(Target()), **settings}
    write_json(arguments.result, {**known, "verdicts": told_of_test, "data": found})
    print(f"stored in {arguments.result}")


def told(recipe: str, partings: list[list[CrossValidation]]) -> dict[str, Any]:
    """What one recipe scores in its first cross-validation, and how many of its tries claim a difference."""
    first = partings[0][0]
    tries = [one.difference(other) for seeds in partings for one, other in combinations(seeds, 2)]
    print(f"{recipe}: {first.score.value:.4f}, before {first.reference.value:.4f}")
    return {
        "reference": vars(first.reference),
        "score": vars(first.score),
        "drop": vars(first.drop) if first.drop else None,
        "tries": len(tries),
        "differences": [vars(each) for each in tries],
        "claimed": describe("called different from itself", sum(each.excludes(0) for each in tries), len(tries)),
    }


if __name__ == "__main__":
    main()
