"""A recipe for a model from what was found in it: which stages pay here, each with the reason in a sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compressor.files.operators import IntegerForm, operator_of
from compressor.inspection.inspection import Inspection, PrunableGroup
from compressor.recipe.recipe import Recipe
from compressor.recipe.text import to_yaml
from compressor.target import Isa, Target

# Below this part of the time, making something free is worth less than 1.18x: not worth the accuracy it costs.
_WORTH = 0.15
# Fewer blocks leave no choice between them.
_FEWEST_BLOCKS = 3


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """A recipe as YAML `text`, with the reasons as comments, and as what that text says."""

    text: str
    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class _Step:
    stage: str
    fields: dict[str, Any]
    why: str


def recommend(inspection: Inspection, target: Target) -> Recommendation | None:
    """The recipe that suits what `inspection` found on `target`; None where nothing can be made smaller.

    Blocks and widths are taken where they decide at least 15 % of the time: together in one decision where both do,
    else the blocks, which turn everything they save into time. Whatever lost accuracy is trained, and 8 bits come last.
    Where the time could not be measured, parameters stand in for it.
    """
    structure = _structure(inspection)
    steps = list(structure)
    if structure:
        steps.append(
            _Step(
                stage="distill",
                fields={"epochs": 8},
                why="Trains the smaller model on the outputs of the original, which wins back most of what it lost.",
            )
        )
    steps += _encoding(inspection, target)
    if not steps:
        return None
    text = _text(inspection, steps)
    return Recommendation(text=text, recipe=Recipe.loads(text, source="the recommended recipe"))


def _structure(inspection: Inspection) -> list[_Step]:
    blocks = len(inspection.free_blocks)
    wide = inspection.free_groups
    in_blocks, in_widths = (1 - inspection.remaining.get(what, 1.0) for what in ("blocks", "widths"))
    in_both = 1 - inspection.remaining.get("both", 1.0)
    if not inspection.remaining:
        in_blocks = sum(block.parameter_fraction for block in inspection.free_blocks)
        in_widths = min(1.0, sum(group.parameter_fraction for group in wide))
        in_both = min(1.0, in_blocks + in_widths)
    share = "of the time" if inspection.remaining else "of the parameters"
    by_blocks = blocks >= _FEWEST_BLOCKS and in_blocks >= _WORTH
    by_widths = bool(wide) and in_widths >= _WORTH
    if by_blocks and by_widths:
        why = (
            f"{blocks} blocks hold {in_blocks:.0%} {share} and {_counted(wide)} {in_widths:.0%}: one decision about "
            "both, which halves what they take."
        )
        return [_Step(stage="shrink_structure", fields={"target": _half_of(in_both)}, why=why)]
    if by_blocks:
        why = f"{blocks} blocks hold {in_blocks:.0%} {share}, and a dropped block saves all of its time."
        return [_Step(stage="drop_blocks", fields={"remove": 0.5}, why=why)]
    if by_widths:
        decide = "decides" if len(wide) == 1 else "decide"
        why = (
            f"{_counted(wide)} {decide} {in_widths:.0%} {share}; about half of that goes, and widths are rounded "
            "to what the kernels are built for."
        )
        fields = {"remove": 0.4} if inspection.latency_ms is None else {"target": _half_of(in_widths)}
        return [_Step(stage="prune_channels", fields=fields, why=why)]
    return []


def _half_of(share: float) -> dict[str, Any]:
    # The rest of the time stays whatever goes: half of everything may be out of reach.
    return {"latency": {"fraction": round(1 - share / 2, 2)}}


def _encoding(inspection: Inspection, target: Target) -> list[_Step]:
    # Of the optimized graph: what has an 8-bit kernel of its own, and that of which the weights alone can be 8-bit.
    rows = {kind: operator_of(kind) for kind in inspection.operators}
    multiplying = {kind for kind, row in rows.items() if row.multiplies_floats}
    cells = {kind for kind in multiplying if rows[kind].integer_form is IntegerForm.CELLS}
    integer = sum(inspection.operators[kind] for kind in multiplying - cells)
    weights = sum(inspection.operators[kind] for kind in cells)
    if inspection.operators and integer + weights == 0:
        return []
    if weights > integer:
        why = "Stores weights in 8 bits: the file shrinks; ONNX Runtime has no faster 8-bit kernel for GRU and RNN."
    elif target.isa is Isa.GENERIC:
        why = "Stores weights in 8 bits: the file shrinks; this CPU has no instructions that make it faster."
    elif integer:
        why = f"8-bit kernels for the operators that take {integer:.0%} of the time, and a quarter of the file."
    else:
        why = "8-bit weights and activations: a quarter of the file, and faster where the CPU has kernels."
    return [_Step(stage="quantize", fields={}, why=why)]


def _counted(groups: Sequence[PrunableGroup]) -> str:
    kinds = {group.kind for group in groups}
    what = kinds.pop() if len(kinds) == 1 else "coupled widths"
    return f"{len(groups)} group{'s' * (len(groups) > 1)} of {what}"


def _text(inspection: Inspection, steps: list[_Step]) -> str:
    lines = [f"# For {inspection.model} in {inspection.workload}, from what `compressor doctor` found."]
    lines += to_yaml({"name": "recommended", "budget": {"max_drop": 0.02}}).splitlines()
    lines.append("stages:")
    for step in steps:
        item = to_yaml({step.stage: step.fields}).splitlines() if step.fields else [step.stage]
        lines.append(f"  # {step.why}")
        lines += [f"  {mark} {line}" for mark, line in zip("-" + " " * len(item), item, strict=False)]
    return "\n".join(lines) + "\n"
