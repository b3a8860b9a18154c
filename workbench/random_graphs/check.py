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
from compressor.runtime import OnnxModule, layout_of, open_session
from compressor.stage import Context
from compressor.stages import GPTQ, Dynamic, Percentile, Quantize, Static, WeightOnly
from compressor.workload import Workload
from workbench.random_graphs.growth import RandomGraph

SAMPLES = 24
# Of a stream.
STEPS = 4
# Reports round to two decimals.
_CLOSE_DB = 0.02
_MOST_DB = 200.0
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"form": Static()},
    {"form": Dynamic()},
    {"form": WeightOnly()},
    {"form": Static(), "calibration": Percentile()},
    {"rounding": GPTQ(samples=16)},
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
    calls = calls_of(grown, exported, samples)
    given = samples
    if grown.state is not None:
        given = {name: values.reshape(-1, STEPS, *values.shape[1:]) for name, values in samples.items()}
    elif grown.single:
        given = {name: values[:, None] for name, values in samples.items()}
    inputs = {name: torch.from_numpy(values) for name, values in given.items()}
    count = len(next(iter(given.values())))
    data = (inputs if len(inputs) > 1 else next(iter(inputs.values()))), torch.zeros(count, dtype=torch.int64)
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
    wrong = faults(exported, shipped.onnx_bytes, calls, context.details["outputs"])
    return Trial(seed=seed, outcome="wrong" if wrong else "kept", reason="; ".join(wrong))


def calls_of(
    grown: RandomGraph, exported: bytes, samples: dict[str, NDArray[np.float32]]
) -> list[dict[str, NDArray[Any]]]:
    """What the file is fed for `samples`: at once, one by one, or steps of streams with the states they come to."""
    if grown.state is None:
        places = [slice(at, at + 1) for at in range(SAMPLES)] if grown.single else [slice(None)]
        return [{name: values[place] for name, values in samples.items()} for place in places]
    before, after = grown.state
    session = open_session(exported)
    state = np.zeros((1, SAMPLES // STEPS, grown.width), dtype=np.float32)
    calls = []
    for step in range(STEPS):
        calls.append({name: values[step::STEPS] for name, values in samples.items()} | {before: state})
        (state,) = session.run([after], calls[-1])
    # As the report's outputs are compared: ranges that are found at a call are those of all its samples.
    joined = {name: np.concatenate([call[name] for call in calls], axis=int(name == before)) for name in calls[0]}
    return [joined]


def faults(
    exported: bytes, shipped: bytes, calls: list[dict[str, NDArray[Any]]], told: list[dict[str, Any]]
) -> list[str]:
    """What of the file is worse than `told`, its outputs by the report, in these calls; and what was not told."""
    before, after = open_session(exported), open_session(shipped)
    names = [value.name for value in before.get_outputs()]
    found = []
    if [value.name for value in after.get_outputs()] != names:
        found.append("the outputs have other names")
    if [entry["output"] for entry in told] != names:
        found.append("the report has other outputs")
    given = {value.name for value in before.get_inputs()}
    streams = layout_of(before).streams
    fed = [{name: values for name, values in call.items() if name in given} for call in calls]
    theirs, ours = (
        [np.concatenate(parts) for parts in zip(*(session.run(names, feeds) for feeds in fed), strict=True)]
        for session in (before, after)
    )
    for name, wanted, got, entry in zip(names, theirs, ours, told, strict=True):
        if wanted.dtype.kind != "f":
            share = float((wanted == got).mean())
            if share < entry["equal"] - 1e-9:
                found.append(f"{name!r} has {share:.4f} of its whole numbers, and the report says {entry['equal']:.4f}")
            continue
        whole = _db(wanted, got)
        if whole < (entry["db"] if entry["db"] is not None else _MOST_DB) - _CLOSE_DB:
            found.append(f"{name!r} keeps {whole:.2f} dB, and the report says {entry['db']}")
        # Channels lie in dimension 1 of all but states, whose samples do.
        if entry.get("channel_db") is not None and name not in streams:
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
