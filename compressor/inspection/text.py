"""An inspection in the terminal: what can be made smaller, what is locked and why, and what would be left at best."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from compressor.inspection.inspection import Family, Inspection
from compressor.inspection.recommendation import Recommendation
from compressor.report.numbers import shapes_in_words

_BAR = 12
_WORDS = {"blocks": "every droppable block", "widths": "every width that can shrink", "both": "all of these"}


def print_inspection(
    inspection: Inspection, recommendation: Recommendation | None, console: Console | None = None
) -> None:
    """Prints the inspection and the recommended recipe; layers that are alike (`layer1.*.conv1`) share a line."""
    console = console or Console()
    target = inspection.target
    taken = "not timed" if inspection.latency_ms is None else f"{inspection.latency_ms:.3g} ms a call"
    sizes = shapes_in_words(inspection.input_shapes)
    load = f"batch {target.batch_size} of {sizes}, {_counted(target.threads, 'thread')}, ONNX Runtime, float32"
    console.print(Text.assemble((f"{inspection.model} of {inspection.workload}", "bold"), f"  {taken} ({load}), "
                                f"{inspection.parameters:,} parameters"))  # fmt: skip
    if "times" in inspection.refusals:
        console.print(Text(f"no times: {inspection.refusals['times']}", style="yellow"))
    families = inspection.found.families
    free = [family for family in families if family.locked is None]
    _print_free(
        console,
        "Blocks that can be dropped",
        [family for family in free if family.is_block],
        inspection.refusals.get("blocks"),
    )
    _print_free(
        console,
        "Widths that can shrink",
        [family for family in free if not family.is_block],
        inspection.refusals.get("widths"),
    )
    locked = [family for family in families if family.locked is not None]
    _print_locked(console, locked, inspection.found.unreached)
    _print_operators(console, inspection)
    _print_best_case(console, inspection)
    console.print()
    if recommendation is None:
        console.print(Text("No recipe: nothing here can be made smaller.", style="yellow"))
        return
    console.print(Text("Recommended recipe", style="bold"))
    for line in recommendation.text.splitlines():
        comment = line.lstrip().startswith("#")
        console.print(Text(line, style="dim" if comment else "cyan"), soft_wrap=True)


def _print_free(console: Console, title: str, families: Sequence[Family], refusal: str | None) -> None:
    console.print()
    if not families:
        console.print(Text.assemble((title, "bold"), ": none", (f" ({refusal})" if refusal else "", "dim")))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=None, header_style="dim")
    table.add_column(Text(title, style="bold not dim"), overflow="fold", ratio=3)
    table.add_column("", overflow="fold")
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    for family in families:
        time, parameters = family.time_fraction, family.parameter_fraction
        cells = Text(_numbered(family)), Text(family.what), _percent(time), Text(_bar(time), style="green")
        table.add_row(*cells, _percent(parameters))
    console.print(table)


def _print_locked(console: Console, families: Sequence[Family], unreached: Mapping[str, str]) -> None:
    if not families and not unreached:
        return
    console.print()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(Text("Locked", style="bold not dim"), overflow="fold", ratio=2)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold", ratio=4)
    table.add_column("called at", overflow="fold", ratio=2)
    for family in families:
        lines = ", ".join(family.lines[:2]) + (" ..." if len(family.lines) > 2 else "")
        cells = Text(_numbered(family)), _percent(family.time_fraction), Text(family.locked or "")
        table.add_row(*cells, Text(lines, style="cyan"))
    for name, danger in unreached.items():
        table.add_row(Text(name), "", Text(danger, style="yellow"), "")
    console.print(table)


def _print_operators(console: Console, inspection: Inspection) -> None:
    shown = [(kind, share) for kind, share in inspection.operators.items() if share >= 0.05] or list(
        inspection.operators.items()
    )[:3]
    if shown:
        rest = 1 - sum(share for _, share in shown)
        parts = [f"{kind} {share:.0%}" for kind, share in shown] + ([f"others {rest:.0%}"] if rest >= 0.005 else [])
        console.print()
        console.print(Text.assemble(("Time by operator", "bold"), f": {', '.join(parts)}"))


def _print_best_case(console: Console, inspection: Inspection) -> None:
    if not inspection.remaining:
        return
    found = {"blocks": bool(inspection.free_blocks), "widths": bool(inspection.free_groups)}
    kinds = [kind for kind, some in found.items() if some]
    kinds += ["both"] if len(kinds) == 2 else []
    if not kinds:
        console.print(Text.assemble(("Best case", "bold"), ": no structure can go, all of the time remains"))
        return
    words = []
    for kind in kinds:
        left = inspection.remaining[kind]
        limit = f"at most {1 / left:.1f}x faster" if left > 0.01 else "no limit from the rest"
        words.append(f"{_WORDS[kind]}: {_share(left)} remains ({limit})")
    console.print(Text.assemble(("Best case", "bold"), f", if it cost nothing: {'; '.join(words)}"))


def _numbered(family: Family) -> str:
    return family.pattern if len(family.members) == 1 else f"{family.pattern} ({len(family.members)})"


def _percent(share: float | None) -> str:
    return "" if share is None else escape(_share(share))


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 or share == 0 else "<1%"


def _bar(share: float | None) -> str:
    filled = 0 if share is None else round(min(1.0, share) * _BAR)
    return "━" * filled


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
