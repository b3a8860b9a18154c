"""A model card in Markdown, with the front matter that the Hugging Face hub reads.

Sections after Mitchell et al. 2019, "Model Cards for Model Reporting" (arXiv:1810.03993), sec. 4. What nobody but the
operator can know is marked, and not made up.
"""

from typing import Any

import yaml

from compressor.report.documents.shipped import OPEN, Shipped
from compressor.report.markdown import bullets, escape, facts, fenced, headed
from compressor.report.numbers import ScoreScale, printable
from compressor.report.scores import removals
from compressor.report.snippets import python
from compressor.report.text import markdown_table
from compressor.report.use import Interface
from compressor.report.view import recipe_yaml, summary, table

_INTERVALS = "Intervals are 95 %. Scores are of the exported file on test data, times of ONNX Runtime."


def model_card(shipped: Shipped) -> str:
    """The card of a finished run. Equal runs give equal cards: there is no date in it."""
    report = shipped.report
    interface = Interface.from_json(report.use, report.artifact)
    rows = table(report)
    used = []
    if interface is not None:
        used = [f"- **{escape(name)}**: {escape(told)}" for name, told in interface.facts()]
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(shipped), sort_keys=False, allow_unicode=True)}---",
        f"# {escape(shipped.name)}",
        escape(summary(report)),
        headed("Model", facts(_model(shipped))),
        headed("Intended use", _open("what it is for, who uses it, and what it must not be used for")),
        headed("Data", _data(shipped)),
        headed("Measurements", f"{markdown_table(rows, [row.outcome for row in rows])}\n\n{_INTERVALS}"),
        headed("By class", _by_class(shipped)),
        headed("What was removed", _removed(shipped)),
        headed("Known limits", bullets(shipped.limits)),
        headed("Ethical considerations", _open("who may be harmed by wrong answers, and what is done about it")),
        headed("Lineage", facts(_lineage(shipped))),
        headed("How it was made", fenced(recipe_yaml(report), "yaml")),
        headed("Use it", "\n".join(used) + ("\n\n" + fenced(python(interface).code, "python") if interface else "")),
        headed("Contact and license", _open("license, authors, contact")),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(shipped: Shipped) -> dict[str, Any]:
    """https://huggingface.co/docs/hub/model-cards, with results as model-index has them."""
    report = shipped.report
    scale, measured = ScoreScale.of(report.workload), report.shipped.measurement
    found: dict[str, Any] = {
        "library_name": "onnx",
        "tags": ["onnx", "onnxruntime", "compression", *_techniques(shipped)],
    }
    if measured is None or not scale.scored:
        return found
    data = _one_line(str(report.workload.get("name", "model")))
    result = {
        "task": {"type": "other"},
        "dataset": {"type": data, "name": data, "split": "test"},
        "metrics": [{"type": scale.name, "value": measured.score.value, "name": f"{scale.name} of the ONNX file"}],
    }
    return {**found, "metrics": [scale.name], "model-index": [{"name": _one_line(shipped.name), "results": [result]}]}


def _one_line(text: str) -> str:
    """Text without line breaks: the hub ends the front matter at a line of three dashes, quoted or not."""
    return " ".join(printable(text).split())


def _techniques(shipped: Shipped) -> list[str]:
    steps = [step.stage for step in shipped.report.steps[1:] if step.kept]
    return [_one_line(name).replace("_", "-") for name in dict.fromkeys(steps)]


def _model(shipped: Shipped) -> dict[str, Any]:
    report, measured = shipped.report, shipped.report.shipped.measurement
    found: dict[str, Any] = {
        "file": report.artifact,
        "SHA-256": shipped.model_sha256,
        "architecture": report.workload.get("model", "not known"),
        "opset": report.use.get("opset", "not known"),
    }
    if measured is not None:
        found |= {"bytes": f"{measured.size_bytes:,}", "parameters": f"{measured.parameters:,}"}
    return found


def _data(shipped: Shipped) -> str:
    told = {f"{name} (digest)": value for name, value in shipped.fingerprint.items() if name != "model"}
    known = facts({"workload": shipped.report.workload.get("name", ""), **told})
    return f"{known}\n\n{_open('where the data are from, what is in them, whom they show, and by which right')}"


def _by_class(shipped: Shipped) -> str:
    if not shipped.classes:
        return ""
    lines = ["| class | samples | before | after | drop |", "|---|---|---|---|---|"]
    for entry in shipped.classes:
        drop = entry.drop
        told = "" if drop is None else f"{100 * drop.value:.1f} [{100 * drop.low:.1f}, {100 * drop.high:.1f}] points"
        lines.append(
            f"| {escape(entry.label)} | {entry.samples} | {100 * entry.before:.1f} % | {100 * entry.after:.1f} % "
            f"| {told} |"
        )
    return "\n".join(lines)


def _removed(shipped: Shipped) -> str:
    told = []
    for step in shipped.report.steps[1:]:
        if step.kept:
            told += [f"{step.stage}: {row.layer}, {row.before} to {row.after}" for row in removals(step)]
    return bullets(told)


def _lineage(shipped: Shipped) -> dict[str, Any]:
    found = {"manifest (SHA-256)": shipped.manifest.digest}
    for parent in shipped.manifest.parents:
        told = [f"{name} {value}" for name, value in parent.items() if name != "is" and value]
        found[str(parent.get("is", "parent"))] = "; ".join(told)
    return found


def _open(what: str) -> str:
    return f"**{OPEN}**: {what}."
