"""How much of its training data a network gives away, before and after shipped recipes.

    python -m benchmarks.trust.membership [--networks resnet20 sst2] [--recipes int8 int8_careful int4] [--samples 2000]

Three attacks, as in `MembershipInference`: by the loss; by the network's own file and the compressed one together
(CompLeak 2025); and, for ResNet-20, beside one network of its kind that was trained on test images which are not asked
about (Carlini et al. 2022, offline). All questions are asked of test data that nothing has read. A killed run goes on.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.data import cifar
from benchmarks.stored import RESULTS
from compressor.evaluations.membership import MembershipInference
from compressor.files.export import export_onnx
from compressor.machine import environment
from compressor.recipe.recipe import Recipe
from compressor.running.pipeline import Pipeline
from compressor.storage import read_json, write_atomic, write_json
from compressor.target import Target
from compressor.workload import Workload
from compressor.workloads.residual import ResNet

RESULT = RESULTS / "membership.json"
RECIPES = ("int8", "int8_careful", "int4")
NETWORKS = ("resnet20", "sst2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--samples", type=int, default=2000, help="training samples that are asked about")
    parser.add_argument("--epochs", type=int, default=20, help="of the network that is trained on other images")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/membership"))
    asked = parser.parse_args()
    networks: dict[str, Any] = read_json(asked.result)["networks"] if asked.result.exists() else {}
    for network in asked.networks:
        workload, references = prepared(network, asked)
        networks[network] = {}
        for name in asked.recipes:
            row = one_recipe(name, workload, references, asked)
            networks[network][name] = row
            print_row(f"{network}, {name}", row)
            result = {"benchmark": "membership", "environment": environment(Target()), "samples": asked.samples}
            write_json(asked.result, {**result, "epochs": asked.epochs, "networks": networks})
    print(f"stored in {asked.result}")


def prepared(network: str, asked: argparse.Namespace) -> tuple[Workload, tuple[str, ...]]:
    """The workload, and paths of networks of its kind that saw neither its training nor its test samples."""
    if network == "sst2":
        from benchmarks.data.references import transformer

        return transformer(), ()
    workload = cifar.resnet20()
    path = asked.out / f"other-resnet20-{asked.epochs}.onnx"
    if not path.exists():
        write_atomic(path, export_onnx(other_resnet20(asked.epochs), workload).onnx_bytes)
    return workload, (str(path),)


def other_resnet20(epochs: int) -> nn.Module:
    """ResNet-20 trained on the half of the test images that decisions read."""
    images, targets = cifar.read("test")
    mine = cifar.rank_in_class(targets) % 2 == 0
    return fit(ResNet(blocks=[3] * 3), images[mine], targets[mine], epochs=epochs, augment=cifar.crop_and_flip)


def fit(
    model: nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    *,
    epochs: int,
    augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor],
    batch: int = 128,
    rate: float = 0.1,
) -> nn.Module:
    """`model`, trained by SGD with momentum in one cycle."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for part in torch.randperm(len(images), generator=generator).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(cifar.normalise(augment(images[part], generator))), targets[part]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def one_recipe(name: str, workload: Workload, references: tuple[str, ...], asked: argparse.Namespace) -> dict[str, Any]:
    """What the recipe's last file gives away, beside the network's own."""
    attack = MembershipInference(samples=asked.samples, references=references)
    pipeline = Pipeline(list(Recipe.load(name).stages), evaluations=[attack])
    folder = asked.out / f"{workload.name}-{Path(name).stem}-{asked.samples}-{len(references)}"
    result = pipeline.run(workload, out=folder, seed=0)
    step = result.report.steps[-1]
    return {"score": asdict(step.measurement.score), "answers": step.details["evaluations"]}


def print_row(name: str, row: dict[str, Any]) -> None:
    print(f"{name}: accuracy {100 * row['score']['value']:.2f} %", flush=True)
    for answer in row["answers"]:
        value, worse = answer["value"], answer["worse"]
        told = answer["why"] or (
            f"{100 * value['value']:.2f}, more by {100 * worse['value']:.2f} "
            f"[{100 * worse['low']:.2f}, {100 * worse['high']:.2f}]"
        )
        print(f"  {answer['what'] or answer['evaluation']}: {told}", flush=True)


if __name__ == "__main__":
    main()
