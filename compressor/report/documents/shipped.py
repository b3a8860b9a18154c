"""A finished run as documents describe it: its report and its manifest, held against each other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import TrustError, WrongUseError
from compressor.notes.evaluations import ClassChanges, OneClass
from compressor.report.record import RunRecord
from compressor.storage import parsed_json, sha256
from compressor.trust.manifest import Manifest, read_manifest
from compressor.trust.tree import content_of

_REPORT = "report.json"
_MOST_REPORT_BYTES = 32_000_000
# What nobody but the operator can know; a search for it finds every place that is still open.
OPEN = "TO BE FILLED IN"


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """A run's `report` and `manifest`."""

    report: RunRecord
    manifest: Manifest

    @classmethod
    def read(cls, folder: Path) -> "Shipped":
        """What the run in `folder` shipped. Raises TrustError where its report is not as listed."""
        if not folder.is_dir():
            raise WrongUseError(f"{folder} is no folder; give that of a finished run")
        manifest = read_manifest(folder)
        listed = manifest.files.get(_REPORT)
        if listed is None or manifest.made.get("by") != "run":
            raise TrustError(f"{folder} holds no finished run: its manifest lists no {_REPORT}")
        try:
            raw = content_of(folder, _REPORT, most_bytes=_MOST_REPORT_BYTES)
        except OSError as error:
            raise TrustError(f"{folder / _REPORT} cannot be read: {error.strerror}") from error
        if sha256(raw) != listed.sha256:
            raise TrustError(f"{folder / _REPORT} was changed: it is not the one that the manifest lists")
        value = parsed_json(raw, folder / _REPORT, way_out="run the recipe again")
        return cls(report=RunRecord.from_json(value), manifest=manifest)

    @property
    def name(self) -> str:
        """What the workload is called, and the recipe."""
        recipe = self.report.recipe or {}
        return "-".join(filter(None, [str(self.report.workload.get("name", "model")), str(recipe.get("name") or "")]))

    @property
    def model_sha256(self) -> str:
        """The SHA-256 of the file that ships."""
        listed = self.manifest.files.get(self.report.artifact)
        return listed.sha256 if listed else ""

    @property
    def classes(self) -> tuple[OneClass, ...]:
        """How the file does on each class, where that was asked for."""
        found = ClassChanges.from_json(self.report.shipped.details)
        return found.classes if found else ()

    @property
    def limits(self) -> list[str]:
        """What is known to be limited, in sentences."""
        told = [str(warning) for warning in self.report.warnings]
        target = self.report.target
        told.append(
            f"Speed was measured on {self.report.environment.get('cpu', 'an unknown processor')} with "
            f"{target.get('threads', 1)} thread(s) and batches of {target.get('batch_size', 1)}; other machines differ."
        )
        if not self.report.budget_met:
            told.append("The budget that was asked for is not met.")
        lost = [entry.label for entry in self.classes if entry.lost]
        if lost:
            told.append(f"Classes that got worse by more than chance: {', '.join(lost)}.")
        told.append("Scores are those of the workload's own test data; on other data they can be others.")
        return told

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Digests of model, data, loss and metric."""
        return dict(self.manifest.made.get("workload", {}).get("fingerprint", {}))
