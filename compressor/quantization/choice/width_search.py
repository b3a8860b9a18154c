"""Widths of layers that are chosen by measuring the whole file: its time beside float's, or its validation score.

What is known of single layers puts the choices in order, from cheap to good; bisection finds the best whose file meets
the goal. The sum over layers would not do: neighbours in float share conversions, and losses of score add up badly.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from compressor.budget import describe_drop, judge_drop
from compressor.errors import StageError
from compressor.intervals import paired_drop
from compressor.knapsack import Option, choose, frontier
from compressor.measuring.node_times import kernel_times
from compressor.measuring.scores import score_rows
from compressor.measuring.timing import time_interleaved
from compressor.notes.quantization import TriedWidths
from compressor.progress.bars import progress_bar
from compressor.quantization.choice.layer_times import layer_ms
from compressor.quantization.choice.sensitivity import FLOAT_BITS, Sensitivity, reason_of, scheme_of_width
from compressor.quantization.file.compact_graph import serialize
from compressor.quantization.grids.weights import nearest_grids
from compressor.quantization.post_training import Prepared
from compressor.stage import Context
from compressor.workload import Workload, resize_batch

Found = Mapping[str, Sequence[Sensitivity]]
# (one entry of each layer, the graph in these forms, what was tried)
Searched = tuple[tuple[Sensitivity, ...], Prepared, list[TriedWidths]]

# Steps of the search for the time: the last is 1 % of the way from the fastest choice to all in float.
_STEPS = 7
# Seconds for the profile of either file that a layer is timed by.
_PROFILE_SECONDS = 0.5
# Choices that a search for the score looks among: ten of them are scored.
_CHOICES = 1024


def assigned(prepared: Prepared, found: Found, chosen: Sequence[Sensitivity]) -> Prepared:
    """`prepared` with every layer in its chosen form. Raises StageError where all layers would be in float."""
    reasons = {entry.node: f"chosen: {reason_of(found[entry.node], entry.bits)}" for entry in chosen if entry.in_float}
    if len(reasons) == len(chosen):
        raise StageError(
            f"all {len(chosen)} layers would be in float, which meets the goal without any noise; ask for more, or use "
            "form=Float16() for weights in half the bytes"
        )
    schemes = {entry.node: scheme_of_width(prepared.scheme, entry.bits) for entry in chosen if not entry.in_float}
    halved = [entry.node for entry in chosen if entry.bits == min(FLOAT_BITS)]
    rest = prepared.without(reasons, float16=halved)
    return replace(rest, weights={**rest.weights, **nearest_grids(prepared.graph, schemes)})


def timed(found: Found, prepared: Prepared, workload: Workload, context: Context) -> Found:
    """`found` with milliseconds on the target, every layer timed in float alone among integers, conversions included.

    Raises StageError where there is but one layer.
    """
    inputs, threads = resize_batch(workload.example_inputs, context.target.batch_size), context.target.threads
    integers = prepared.shipped()

    def total_ms(file: bytes) -> float:
        return sum(kernel_times(file, inputs, threads=threads, seconds=_PROFILE_SECONDS).values())

    extra: dict[str, float] = {}
    for name in progress_bar(found, desc="layers in float", unit="layer", shown=context.progress):
        alone = prepared.without({name: "timed in float"}).shipped()
        # The integer file anew for every layer: other work on the machine comes and goes.
        extra[name] = total_ms(alone) - total_ms(integers)
    return with_times(found, layer_ms(integers, prepared.graph, inputs, threads=threads), extra)


def with_times(found: Found, in_integers: Mapping[str, float], extra: Mapping[str, float]) -> Found:
    """`found` with milliseconds: those of a layer in integers, in float the `extra` that the file takes then, if any.

    A layer whose time no profile tells has 0 in integers.
    """
    return {
        name: tuple(
            replace(entry, ms=in_integers.get(name, 0.0) + (max(0.0, extra[name]) if entry.in_float else 0.0))
            for entry in entries
        )
        for name, entries in found.items()
    }


def within_time(prepared: Prepared, found: Found, latency: float, workload: Workload, context: Context) -> Searched:
    """The least loss in the fraction `latency` of the float file's time, timed in turns with it.

    Raises StageError where the fastest choice takes longer.
    """
    inputs, threads = resize_batch(workload.example_inputs, context.target.batch_size), context.target.threads
    plain = serialize(prepared.graph)
    layers = tuple(found.values())
    options = [[Option(loss=entry.loss, cost=entry.ms or 0.0) for entry in layer] for layer in layers]
    shares: dict[tuple[Sensitivity, ...], float] = {}
    tried: list[TriedWidths] = []

    def least_loss(limit_ms: float) -> tuple[Sensitivity, ...]:
        return tuple(layer[pick] for layer, pick in zip(layers, choose(options, limit_ms), strict=True))

    def judged(chosen: tuple[Sensitivity, ...]) -> tuple[tuple[Sensitivity, ...], Prepared, float]:
        """(the choice, its graph, the fraction of the float file's time)."""
        candidate = assigned(prepared, found, chosen)
        if chosen not in shares:
            file = candidate.shipped()
            speedup = time_interleaved(file, plain, inputs, threads=threads, seed=context.seed).speedup
            share = shares[chosen] = 1 / speedup.value
            in_float = [entry.node for entry in chosen if entry.in_float]
            tried.append(TriedWidths(in_float=tuple(in_float), latency=round(share, 4), kept=share <= latency))
        return chosen, candidate, shares[chosen]

    # Nothing in float, and what layers take where none loses anything.
    low = sum(min(option.cost for option in layer) for layer in options)
    high = sum(min(layer, key=lambda option: (option.loss, option.cost)).cost for layer in options)
    quantized = tuple(tuple(entry for entry in layer if not entry.in_float) for layer in layers)
    best, mixed, share = judged(tuple(min(layer, key=lambda entry: entry.loss) for layer in quantized))
    if share > latency:
        best, mixed, share = judged(least_loss(low))
    if share > latency:
        raise StageError(
            f"the fastest choice of widths takes {share:.2f} of the float file's time, wanted are {latency:g} at most; "
            "ask for more time, or compress the structure first"
        )
    for _ in progress_bar(range(_STEPS), desc="widths", unit="step", shown=context.progress):
        middle = (low + high) / 2
        chosen, candidate, share = judged(least_loss(middle))
        if share > latency:
            high = middle
        else:
            low, best, mixed = middle, chosen, candidate
    return best, mixed, tried


def fewest_bytes(prepared: Prepared, found: Found, max_drop: float, workload: Workload, context: Context) -> Searched:
    """The fewest bytes that lose at most `max_drop` on the validation data. Raises StageError where nothing does."""
    metric = workload.metric
    rows = score_rows(prepared.exported, workload.validation, metric)
    choices = quantized_choices(tuple(found.values()))
    tried: list[TriedWidths] = []

    def judged(at: int) -> tuple[Prepared, str]:
        """(the choice, what it loses where that is too much)."""
        candidate = assigned(prepared, found, choices[at])
        scored = score_rows(candidate.shipped(), workload.validation, metric)
        drop = paired_drop(scored, rows, metric, seed=context.seed)
        kept = judge_drop(drop, max_drop, metric).keep
        size = sum(entry.size_bytes for entry in choices[at])
        tried.append(TriedWidths(weight_bytes=size, drop=drop, kept=kept))
        return candidate, "" if kept else describe_drop(drop, metric)

    failing, passing = -1, len(choices) - 1
    best, lost = judged(passing)
    if lost:
        raise StageError(
            f"validation {lost} with the most bytes of all choices, max_drop is {max_drop:g}; allow more bits or 32, "
            "or train with QuantizationAwareTraining"
        )
    # More bytes lose less: of the choices in between, each that is scored rules out half.
    scored = math.ceil(math.log2(max(1, passing - failing)))
    with progress_bar(total=scored, desc="widths", unit="choice", shown=context.progress) as bar:
        while passing - failing > 1:
            middle = (failing + passing) // 2
            candidate, lost = judged(middle)
            if lost:
                failing = middle
            else:
                passing, best = middle, candidate
            bar.update()
    return choices[passing], best, tried


def quantized_choices(layers: Sequence[Sequence[Sensitivity]]) -> list[tuple[Sensitivity, ...]]:
    """The undominated choices with at least one layer of integers, by rising bytes and falling loss."""
    options = [[Option(loss=entry.loss, cost=entry.size_bytes) for entry in layer] for layer in layers]
    choices = [
        tuple(layer[pick] for layer, pick in zip(layers, picks, strict=True))
        for picks, _, _ in frontier(options, math.inf, _CHOICES)
    ]
    return [choice for choice in choices if not all(entry.in_float for entry in choice)]


def float_share(chosen: Sequence[Sensitivity], found: Found) -> float:
    """The fraction of the layers' weights that stay in float, in [0, 1)."""
    counts = {entry.node: found[entry.node][0].size_bytes / found[entry.node][0].bits for entry in chosen}
    return round(sum(counts[entry.node] for entry in chosen if entry.in_float) / sum(counts.values()), 4)
