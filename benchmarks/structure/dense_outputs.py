"""Segmentation of street scenes and detection of blood cells: pruned, distilled and quantized by the pipeline.

    python -m benchmarks.structure.dense_outputs [--networks camvid-unet bccd-detector] [--out DIR]

The references are trained first (minutes) and kept. Without a budget every stage is kept, and the table says what each
did to score, size and time. The detector is distilled on its raw answers, logits and corners at every place, by a
distance of its own. A killed run goes on where it was.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks.data import blood_cells, references
from benchmarks.stored import RESULTS
from benchmarks.structure.recurrent import print_table, run
from compressor.pruning.choice.targets import Macs
from compressor.stage import Stage
from compressor.stages import Distill, PruneChannels, Quantize
from compressor.storage import read_json, write_json
from compressor.training.optimizers.choices import AdamW
from compressor.workload import Workload

RESULT = RESULTS / "dense-outputs.json"
WORKLOADS: dict[str, Callable[[], Workload]] = {
    "camvid-unet": references.segmenter,
    "bccd-detector": references.detector,
}


def stages(network: str) -> list[Stage]:
    """Half of the multiply-accumulates, as many epochs of recovery as half of the training, 8 bits."""
    taught = (
        Distill(epochs=15, tail_epochs=0, optimizer=AdamW(rate=1e-3))
        if network == "camvid-unet"
        else Distill(epochs=20, tail_epochs=0, optimizer=AdamW(rate=1e-3), loss=blood_cells.taught, soft_weight=0.5)
    )
    return [PruneChannels(target=Macs(0.5)), taught, Quantize()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--out", type=Path, default=Path("runs/bench/dense_outputs"))
    arguments = parser.parse_args()
    stored = read_json(RESULT)["networks"] if RESULT.exists() else {}
    for network in arguments.networks:
        stored[network] = run(WORKLOADS[network](), stages(network), arguments.out / network)
        ordered = {name: stored[name] for name in WORKLOADS if name in stored}
        write_json(RESULT, {"benchmark": "dense outputs", "networks": ordered})
        print_table(network, stored[network])
    print(f"stored in {RESULT}")


if __name__ == "__main__":
    main()
