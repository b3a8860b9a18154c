"""Segmentation of street scenes and detection of blood cells: pruned, distilled and quantized by the pipeline.

    python -m benchmarks.structure.dense_outputs [--networks camvid-unet bccd-detector] [--out DIR]

The references are trained first (minutes) and kept. Without a budget every stage is kept, and the table says what each
did to score, size and time. The detector is distilled on its raw answers, logits and corners at every place, by a
distance of its own. A killed run goes on where it was.
"""

from collections.abc import Callable

from benchmarks.data import blood_cells, references
from benchmarks.stored import RESULTS
from benchmarks.structure.recurrent import run_all
from compressor.pruning.choice.targets import Macs
from compressor.stage import Stage
from compressor.stages import Distill, PruneChannels, Quantize
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
    run_all(__doc__, WORKLOADS, stages, RESULT, name="dense outputs")


if __name__ == "__main__":
    main()
