"""Layers that lose more than they bring go back to float, each with its reason.

An integer kernel can be slower than its float one (depthwise or tiny layers, conversions around a lone layer), and one
layer can cost most of the accuracy. Which layers are slower is read from ONNX Runtime's profile of both files; that it
helps to give them back is proved by timing the whole files in turns, since new conversions appear at their borders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from compressor.estimate import Estimate
from compressor.node_times import kernel_times
from compressor.quantization.audit import original_name
from compressor.quantization.compact_graph import serialize
from compressor.quantization.post_training import Prepared
from compressor.quantization.sensitivity import Sensitivity, sensitivities
from compressor.runtime import time_interleaved
from compressor.scores import paired_drop, score_rows
from compressor.stage import Context, StageError
from compressor.workload import Workload, resize_batch


@dataclass(frozen=True, kw_only=True)
class GiveBack:
    """Float again: what is slower in integers, and what costs more accuracy than `max_drop`.

    `max_drop` is as in `Budget`, judged on the validation data (None does not look at accuracy); `slower` says whether
    time is looked at. `samples` (>= 1) of the calibration data rank the layers by their noise.
    """

    max_drop: float | None = 0.01
    slower: bool = True
    samples: int = 64

    def __post_init__(self) -> None:
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise ValueError(f"max_drop is a fraction in [0, 1), one point of accuracy is 0.01; got {self.max_drop}")
        if self.max_drop is None and not self.slower:
            raise ValueError("max_drop=None with slower=False looks at nothing; leave GiveBack out")
        if self.samples < 1:
            raise ValueError(f"samples counts calibration samples, at least 1; got {self.samples}")

    def apply(self, prepared: Prepared, workload: Workload, context: Context) -> Prepared:
        """`prepared` without the layers that went back; all decisions stand in its details under "given_back"."""
        told: dict[str, Any] = {"nodes": [], "tried": []}
        if self.slower:
            prepared = _faster(prepared, workload, context, told)
        if self.max_drop is not None:
            prepared = self._accurate(prepared, self.max_drop, workload, context, told)
        return prepared.noting("given_back", told)

    def _accurate(
        self, prepared: Prepared, max_drop: float, workload: Workload, context: Context, told: dict[str, Any]
    ) -> Prepared:
        metric = workload.metric
        reference = score_rows(prepared.exported, workload.validation, metric)

        def drop_of(candidate: Prepared) -> Estimate:
            rows = score_rows(serialize(candidate.place()), workload.validation, metric)
            return paired_drop(rows, reference, metric, seed=context.seed)

        before = drop_of(prepared)
        told["drop"] = {"before": before.value, "max_drop": max_drop}
        if before.value <= max_drop:
            return prepared
        ranked = _by_noise(prepared, workload, context, samples=self.samples)
        given, best = 1, prepared
        while True:
            names = [entry.node for entry in ranked[:given]]
            reasons = {
                entry.node: f"given back: alone it leaves {entry.sqnr_db:.1f} dB, and the drop of {before.value:.4f} "
                f"exceeds {max_drop:g}"
                for entry in ranked[:given]
            }
            try:
                best = prepared.without(reasons)
            except StageError as error:
                raise StageError(
                    f"quantization loses {before.value:.4f} of {metric.name} on validation and may lose {max_drop:g}; "
                    "giving back every layer but one does not help; train with QuantizationAwareTraining, or allow more"
                ) from error
            drop = drop_of(best)
            told["tried"].append(
                {"nodes": names, "why": "accuracy", "drop": drop.value, "kept": drop.value <= max_drop}
            )
            if drop.value <= max_drop:
                told["nodes"] += [{"node": name, "why": reason} for name, reason in reasons.items()]
                told["drop"]["after"] = drop.value
                return best
            if given >= len(ranked):
                raise StageError(
                    f"quantization loses {drop.value:.4f} of {metric.name} on validation with every ranked layer in "
                    f"float, and may lose {max_drop:g}; train with QuantizationAwareTraining, or allow more"
                )
            given = min(2 * given, len(ranked))


def _faster(prepared: Prepared, workload: Workload, context: Context, told: dict[str, Any]) -> Prepared:
    """`prepared` without the layers whose integer form is slower, as far as the whole file gets faster by it."""
    inputs = resize_batch(workload.example_inputs, context.target.batch_size)
    threads = context.target.threads
    current = serialize(prepared.place())
    slower = slower_nodes(
        _layer_ms(serialize(prepared.graph), prepared.graph, inputs, threads),
        _layer_ms(current, prepared.graph, inputs, threads),
        prepared.placement.static,
    )
    for names in _trials(slower):
        reasons = {
            name: f"given back: {slower[name][1]:.4f} ms in integers, {slower[name][0]:.4f} ms in float"
            for name in names
        }
        try:
            candidate = prepared.without(reasons)
        except StageError:
            continue  # nothing would be left: the pipeline's own gate judges the whole
        gain = time_interleaved(
            serialize(candidate.place()), current, inputs, threads=threads, seed=context.seed
        ).speedup
        kept = gain.low > 1
        told["tried"].append({"nodes": names, "why": "time", "speedup": vars(gain), "kept": kept})
        if kept:
            told["nodes"] += [{"node": name, "why": reason} for name, reason in reasons.items()]
            return candidate
    return prepared


def slower_nodes(
    float_ms: Mapping[str, float], integer_ms: Mapping[str, float], nodes: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """{node: (float, integer milliseconds)} of `nodes` whose integer form takes longer, the greatest loss first."""
    found = {
        name: (float_ms[name], integer_ms[name])
        for name in nodes
        if name in float_ms and name in integer_ms and integer_ms[name] > float_ms[name]
    }
    return dict(sorted(found.items(), key=lambda item: item[1][0] - item[1][1]))


def _trials(slower: Mapping[str, tuple[float, float]]) -> list[list[str]]:
    """All of them, the half that loses most, the one that does: each less than the one before."""
    names = list(slower)
    sizes = sorted({len(names), (len(names) + 1) // 2, 1} - {0}, reverse=True)
    return [names[:size] for size in sizes if names]


def _layer_ms(onnx_bytes: bytes, graph: onnx.ModelProto, inputs: Any, threads: int) -> dict[str, float]:
    """Milliseconds of every layer with weights, by its name in the float `graph`."""
    found: dict[str, float] = {}
    for name, ms in kernel_times(onnx_bytes, inputs, threads=threads).items():
        layer = original_name(name, graph)
        found[layer] = found.get(layer, 0.0) + ms
    return found


def _by_noise(prepared: Prepared, workload: Workload, context: Context, *, samples: int) -> list[Sensitivity]:
    """The static layers as they are placed, the noisiest first."""
    found = sensitivities(prepared, (prepared.scheme.bits,), workload, context, samples=samples)
    return sorted((entries[0] for entries in found.values()), key=lambda entry: entry.sqnr_db)
