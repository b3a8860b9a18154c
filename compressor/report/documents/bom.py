"""A bill of materials for machine learning: CycloneDX 1.6 (ECMA-424), with a model card in its own form.

https://cyclonedx.org/docs/1.6/json/. Written by hand, as cyclonedx-python-lib writes no model cards.
"""

import uuid
from typing import Any

from compressor import __version__
from compressor.estimate import Estimate
from compressor.report.documents.shipped import OPEN, Shipped
from compressor.report.numbers import ScoreScale

_DATA = ("train", "calibration", "validation", "test")
_MODEL = "model"


def bill_of_materials(shipped: Shipped) -> dict[str, Any]:
    """The document as JSON values. Equal runs give equal ones: its serial number follows from the manifest."""
    libraries = _libraries(shipped)
    data = _data(shipped)
    parts = [*data, *libraries]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, shipped.manifest.digest)}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "torch-compressor", "version": __version__}]},
            "component": _model(shipped),
        },
        "components": parts,
        "dependencies": [{"ref": _MODEL, "dependsOn": [part["bom-ref"] for part in parts]}],
    }


def _model(shipped: Shipped) -> dict[str, Any]:
    report = shipped.report
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": shipped.name,
        "version": shipped.manifest.digest[:12],
        "description": f"{report.artifact}, made by: {', '.join(shipped.manifest.made.get('kept', []))}",
        "hashes": [{"alg": "SHA-256", "content": shipped.model_sha256}],
        "pedigree": {"ancestors": _ancestors(shipped)},
        "modelCard": {
            "modelParameters": {
                "modelArchitecture": str(report.workload.get("model", "not known")),
                "datasets": [{"ref": name} for name in _names(shipped)],
                "inputs": [{"format": _port(port)} for port in report.use.get("inputs", [])],
                "outputs": [{"format": _port(port)} for port in report.use.get("outputs", [])],
            },
            "quantitativeAnalysis": {"performanceMetrics": _metrics(shipped)},
            "considerations": {
                "useCases": [OPEN],
                "technicalLimitations": shipped.limits,
                "ethicalConsiderations": [{"name": OPEN}],
            },
        },
        "properties": [
            _property("manifest_sha256", shipped.manifest.digest),
            _property("seed", report.seed),
            _property("plan_sha256", shipped.manifest.made.get("plan_sha256", "")),
            _property("processor", report.environment.get("cpu", "")),
            *(
                _property(f"stage {number}", f"{step.stage}: {'kept' if step.kept else 'rolled back'}")
                for number, step in enumerate(report.steps)
                if number
            ),
        ],
    }


def _metrics(shipped: Shipped) -> list[dict[str, Any]]:
    report, measured = shipped.report, shipped.report.shipped.measurement
    if measured is None:
        return []
    scale = ScoreScale.of(report.workload)
    found = [_metric(scale.name, measured.score)] if scale.scored else []
    found += [_metric("latency_ms", measured.latency_ms), _metric("speedup over the reference", measured.speedup)]
    found.append({"type": "size_bytes", "value": str(measured.size_bytes)})
    if report.shipped.drop is not None:
        found.append(_metric("drop from the reference", report.shipped.drop))
    for entry in shipped.classes:
        found.append({"type": scale.name, "value": str(entry.after), "slice": f"class {entry.label}"})
        if entry.drop is not None:
            found.append({**_metric("drop from the reference", entry.drop), "slice": f"class {entry.label}"})
    return found


def _metric(name: str, estimate: Estimate) -> dict[str, Any]:
    return {
        "type": name,
        "value": str(estimate.value),
        "confidenceInterval": {"lowerBound": str(estimate.low), "upperBound": str(estimate.high)},
    }


def _names(shipped: Shipped) -> list[str]:
    return [name for name in _DATA if name in shipped.fingerprint]


def _data(shipped: Shipped) -> list[dict[str, Any]]:
    workload = str(shipped.report.workload.get("name", "model"))
    return [
        {
            "type": "data",
            "bom-ref": name,
            "name": f"{workload}, {name}",
            "data": [{"type": "dataset", "name": name, "description": f"{OPEN}: source, content, license"}],
            "properties": [_property("content digest", shipped.fingerprint[name])],
        }
        for name in _names(shipped)
    ]


def _libraries(shipped: Shipped) -> list[dict[str, Any]]:
    versions = {name: version for name, version in shipped.manifest.made.get("versions", {}).items() if version}
    return [
        {
            "type": "platform" if name == "python" else "library",
            "bom-ref": f"library {name}",
            "name": name,
            "version": str(version),
            **({} if name == "python" else {"purl": f"pkg:pypi/{name}@{str(version).replace('+', '%2B')}"}),
        }
        for name, version in sorted(versions.items())
    ]


def _ancestors(shipped: Shipped) -> list[dict[str, Any]]:
    found = []
    for parent in shipped.manifest.parents:
        entry: dict[str, Any] = {"type": "machine-learning-model", "name": str(parent.get("is", "parent"))}
        if parent.get("file"):
            entry["description"] = str(parent["file"])
        if parent.get("sha256"):
            entry["hashes"] = [{"alg": "SHA-256", "content": str(parent["sha256"])}]
        if parent.get("content"):
            entry["properties"] = [_property("content digest", parent["content"])]
        found.append(entry)
    return found


def _port(port: dict[str, Any]) -> str:
    return f"{port.get('name')}: {port.get('dtype')} {port.get('shape')}"


def _property(name: str, value: Any) -> dict[str, str]:
    return {"name": f"compressor:{name}", "value": str(value)}
