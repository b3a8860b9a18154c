"""A random graph quantized by the public stage: what its report says of every output and channel is so.

Powers are summed here in numpy, without the product's own code. The file may lose what the report says on the data that
it was compared on, and on others of the same kind as much as a few large values more can cost.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.errors import StageError
from compressor.metrics import Metric
from compressor.runtime import OnnxModule, open_session
from compressor.stage import Context
from compressor.stages import Dynamic, Percentile, Quantize, Static, WeightOnly
from compressor.workload import Workload
from workbench.random_graphs.growth import RandomGraph

SAMPLES = 24
# Reports round to two decimals.
_CLOSE_DB = 0.02
_MOST_DB = 200.0
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"form": Static()},
    {"form": Dynamic()},
    {"form": WeightOnly()},
    {"form": Static(), "calibration": Percentile()},
)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What became of one graph: "kept", "refused" with the reason, or "wrong" with what is not as the report says."""

    seed: int
    outcome: str
    reason: str = ""


def try_graph(seed: int) -> Trial:
    """Quantizes the graph of `seed` in one of several ways, and holds the file against its report."""
    grown = RandomGraph(seed=seed)
    exported = grown.model.SerializeToString()
    samples = grown.samples(SAMPLES, seed=0)
    inputs = {name: torch.from_numpy(values) for name, values in samples.items()}
    data = (inputs if len(inputs) > 1 else next(iter(inputs.values()))), torch.zeros(SAMPLES, dtype=torch.int64)
    metric = Metric(name="nothing", per_sample=lambda outputs, _: torch.ones(len(outputs)))
    workload = Workload.from_datasets(
        OnnxModule(exported), train=data, validation=data, test=data, metric=metric, batch_size=SAMPLES, name="grown"
    )
    context = Context(progress=False)
    try:
        shipped = Quantize(**SETTINGS[seed % len(SETTINGS)]).apply(workload.model, workload, context)
    except StageError as error:
        return Trial(seed=seed, outcome="refused", reason=str(error))
    assert isinstance(shipped, OnnxModule)
    wrong = faults(exported, shipped.onnx_bytes, samples, context.details["outputs"])
    return Trial(seed=seed, outcome="wrong" if wrong else "kept", reason="; ".join(wrong))


def faults(
    exported: bytes, shipped: bytes, samples: dict[str, NDArray[np.float32]], told: list[dict[str, Any]]
) -> list[str]:
    """What of the file is worse than `told`, its outputs by the report, on these samples; and what was not told."""
    before, after = open_session(exported), open_session(shipped)
    names = [value.name for value in before.get_outputs()]
    found = []
    if [value.name for value in after.get_outputs()] != names:
        found.append("the outputs have other names")
    if [entry["output"] for entry in told] != names:
        found.append("the report has other outputs")
    feeds = {value.name: samples[value.name] for value in before.get_inputs()}
    for name, wanted, got, entry in zip(names, before.run(None, feeds), after.run(names, feeds), told, strict=True):
        if wanted.dtype.kind != "f":
            share = float((wanted == got).mean())
            if share < entry["equal"] - 1e-9:
                found.append(f"{name!r} has {share:.4f} of its whole numbers, and the report says {entry['equal']:.4f}")
            continue
        whole = _db(wanted, got)
        if whole < (entry["db"] if entry["db"] is not None else _MOST_DB) - _CLOSE_DB:
            found.append(f"{name!r} keeps {whole:.2f} dB, and the report says {entry['db']}")
        if entry.get("channel_db") is not None:
            worst = entry["channel"]
            channel = _db(wanted[:, worst], got[:, worst])
            if channel < entry["channel_db"] - _CLOSE_DB:
                found.append(f"{name!r} keeps {channel:.2f} dB in {worst}, and the report says {entry['channel_db']}")
            for place in range(wanted.shape[1]):
                one = wanted[:, place]
                telling = np.abs(one).max() > 0 and one.astype(np.float64).std() > 1e-3 * np.abs(one).max()
                small = one.min() >= 0 and one.max() <= 1 and one.max() < 0.05
                if telling and not small and _db(one, got[:, place]) < entry["channel_db"] - _CLOSE_DB:
                    found.append(
                        f"{name!r} keeps {_db(one, got[:, place]):.2f} dB in {place}, less than the worst told"
                    )
    return found


def _db(wanted: NDArray[Any], got: NDArray[Any]) -> float:
    """Decibels of signal around the mean, 200 at most; a constant counts against its own size."""
    before, after = wanted.astype(np.float64), got.astype(np.float64)
    noise = np.square(before - after).sum()
    signal = np.square(before - before.mean()).sum()
    if signal <= before.size * np.square(1e-6 * np.abs(before).max()):
        signal = np.square(before).sum()
    return _MOST_DB if noise == 0 else float(min(_MOST_DB, 10 * np.log10(max(signal, 1e-300) / noise)))
