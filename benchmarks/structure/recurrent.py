"""Recurrent networks on spoken digits and an autoencoder on MNIST: pruned, recovered and quantized by the pipeline.

    python -m benchmarks.structure.recurrent [--networks lstm gru autoencoder] [--out DIR]

The references are trained first (minutes) and kept. Without a budget every stage is kept, and the table says what each
did to score, size and time. A killed run goes on where it was.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.data import references
from benchmarks.stored import RESULTS
from compressor import Pipeline, Target
from compressor.machine import environment
from compressor.stage import Stage
from compressor.stages import Distill, PruneChannels, Quantize
from compressor.storage import read_json, write_json
from compressor.training.optimizers.choices import SGD, AdamW
from compressor.workload import Workload

RESULT = RESULTS / "recurrent.json"
WORKLOADS: dict[str, Callable[[], Workload]] = {
    "lstm": references.lstm,
    "gru": references.gru,
    "autoencoder": references.autoencoder,
}
# A third of the rates that the references were trained with.
OPTIMIZERS = {"lstm": AdamW(rate=1e-3), "gru": AdamW(rate=1e-3), "autoencoder": SGD(rate=0.03)}


def stages(network: str) -> list[Stage]:
    """Half of the multiply-accumulates, eight epochs of recovery, 8 bits."""
    from compressor.pruning.choice.targets import Macs

    return [PruneChannels(target=Macs(0.5)), Distill(epochs=7, optimizer=OPTIMIZERS[network]), Quantize()]


def main() -> None:
    run_all(__doc__, WORKLOADS, stages, RESULT, name="recurrent")


def run_all(
    doc: str,
    workloads: dict[str, Callable[[], Workload]],
    stages: Callable[[str], list[Stage]],
    result: Path,
    *,
    name: str,
) -> None:
    """The command line of such a benchmark: each network by its stages, stored in `result` as it is done."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(workloads), default=list(workloads))
    parser.add_argument("--out", type=Path, default=Path("runs/bench") / name.replace(" ", "_"))
    arguments = parser.parse_args()
    stored = read_json(result)["networks"] if result.exists() else {}
    for network in arguments.networks:
        stored[network] = run(workloads[network](), stages(network), arguments.out / network)
        ordered = {each: stored[each] for each in workloads if each in stored}
        write_json(result, {"benchmark": name, "networks": ordered})
        print_table(network, stored[network])
    print(f"stored in {result}")


def run(workload: Workload, stages: Sequence[Stage], out: Path) -> dict:
    """What the pipeline reports of every stage, the reference first."""
    target = Target()
    where = environment(target)
    report = Pipeline(stages).run(workload, target=target, out=out, seed=0).report
    steps = [
        {
            "stage": step.stage,
            "parameters": step.parameters,
            "kept": step.kept,
            "reason": step.reason,
            "seconds": step.seconds,
            "measurement": None if step.measurement is None else step.measurement.to_json(),
            "drop": None if step.drop is None else asdict(step.drop),
        }
        for step in report.steps
    ]
    return {"environment": where, "metric": workload.metric.name, "workload": workload.name, "steps": steps}


def print_table(network: str, result: dict) -> None:
    print(f"\n{network} ({result['workload']})")
    print(f"{'after':16s} {result['metric']:>10s} {'MACs':>10s} {'KiB':>8s} {'speed-up':>20s} {'seconds':>8s}")
    for step in result["steps"]:
        measured = step["measurement"]
        if measured is None:
            print(f"{step['stage']:16s} {step['reason']}")
            continue
        ratio = measured["speedup"]
        print(
            f"{step['stage']:16s} {measured['score']['value']:10.5f} {measured['macs'] / 1e6:8.2f} M "
            f"{measured['size_bytes'] / 1024:8.0f} {ratio['value']:6.2f} [{ratio['low']:5.2f}, {ratio['high']:5.2f}] "
            f"{step['seconds']:8.1f}"
        )


if __name__ == "__main__":
    main()
