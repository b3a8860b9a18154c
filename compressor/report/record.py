"""What a run did and what came of it, as data: steps, and the record of the whole run, to JSON and back."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from compressor.errors import StorageError
from compressor.estimate import Estimate
from compressor.measuring.measure import Measurement
from compressor.storage import json_safe
from compressor.workload import Workload, input_tensors

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one piece of work gave, before anyone judges it.

    `measurement` is that of its ONNX file on the test data, None where nothing came out to measure. `drop` is how much
    worse its test score is than the reference's, sample by sample (points for bounded metrics, a fraction of the
    reference otherwise). `details` is what the stage itself tells, JSON values only.
    """

    seconds: float
    measurement: Measurement | None = None
    drop: Estimate | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def shared(self) -> dict[str, Any]:
        """The fields of `Work` alone by name: what its step has in common with it."""
        return {item.name: getattr(self, item.name) for item in fields(Work)}


@dataclass(frozen=True, kw_only=True)
class Step(Work):
    """One stage of a run: what it gave, and the verdict on it.

    `stage` is its name in recipes, "reference" for the model before any. `validation` is what the budget was judged by:
    {} or {"score", "drop": {"value", "low", "high"}}. `pays` is False for a stage that made the file slower, or neither
    faster nor smaller.
    """

    stage: str
    parameters: dict[str, Any] = field(default_factory=dict)
    kept: bool
    reason: str = ""
    validation: dict[str, Any] = field(default_factory=dict)
    pays: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """The step as in report.json. A measurement that is not finite, such as an infinite error, becomes null."""
        measurement = None if self.measurement is None else json_safe(self.measurement.to_json())
        drop = None if self.drop is None else json_safe(_interval(self.drop))
        return {
            "stage": self.stage,
            "parameters": json_safe(self.parameters),
            "kept": self.kept,
            "reason": self.reason,
            "seconds": json_safe(self.seconds),
            "measurement": measurement if _complete(measurement) else None,
            "drop": drop if _complete(drop) else None,
            "validation": json_safe(self.validation),
            "pays": self.pays,
            "details": json_safe(self.details),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Step":
        """The step of `to_json`; keys that are missing get their defaults, unknown ones are left out."""
        measurement, drop = value.get("measurement"), value.get("drop")
        return cls(
            stage=str(value["stage"]),
            parameters=dict(value.get("parameters") or {}),
            kept=bool(value["kept"]),
            reason=str(value.get("reason") or ""),
            seconds=float(value.get("seconds") or 0.0),
            measurement=None if measurement is None else Measurement.from_json(measurement),
            drop=None if drop is None else Estimate(drop["value"], drop["low"], drop["high"]),
            validation=dict(value.get("validation") or {}),
            pays=value.get("pays"),
            details=dict(value.get("details") or {}),
        )


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A whole run as data. `steps[0]` is the reference, `steps[final]` the one whose file ships as `artifact`.

    `workload` is as `describe_workload` gives it, `environment` as `environment` does; `target`, `budget` and `recipe`
    are the fields of those objects; `use` is what a program must know to run the file, as `Interface.to_json` gives it.
    `to_json`'s layout is docs/report_schema.json.
    """

    workload: dict[str, Any]
    environment: dict[str, Any]
    target: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] | None = None
    budget_met: bool = True
    seed: int = 0
    recipe: dict[str, Any] | None = None
    steps: tuple[Step, ...]
    final: int
    warnings: tuple[str, ...] = ()
    artifact: str = "model.onnx"
    use: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("a report needs at least one step, the reference; got none")
        if not 0 <= self.final < len(self.steps):
            raise ValueError(f"final is the index of one of the {len(self.steps)} steps, got {self.final}")

    @property
    def reference(self) -> Step:
        """The step that every other is compared with."""
        return self.steps[0]

    @property
    def shipped(self) -> Step:
        """The step whose file ships."""
        return self.steps[self.final]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values, laid out as docs/report_schema.json says."""
        return {
            "schema_version": SCHEMA_VERSION,
            "workload": json_safe(self.workload),
            "environment": json_safe(self.environment),
            "target": json_safe(self.target),
            "budget": json_safe(self.budget),
            "budget_met": self.budget_met,
            "seed": self.seed,
            "recipe": json_safe(self.recipe),
            "final": self.final,
            "warnings": [str(warning) for warning in self.warnings],
            "artifact": self.artifact,
            "use": json_safe(self.use),
            "steps": [step.to_json() for step in self.steps],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The report of `to_json`. Raises StorageError for a layout that this version does not know."""
        schema = value.get("schema_version") if isinstance(value, Mapping) else None
        if schema != SCHEMA_VERSION:
            raise StorageError(
                f"this version reads reports of schema_version {SCHEMA_VERSION}, got {schema!r}; "
                "run the recipe again or read it with the version that wrote it"
            )
        try:
            return cls._from_fields(value)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            told = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise StorageError(f"the report is not laid out as this version writes it: {told}; run it again") from error

    @classmethod
    def _from_fields(cls, value: Mapping[str, Any]) -> Self:
        return cls(
            workload=dict(value.get("workload") or {}),
            environment=dict(value.get("environment") or {}),
            target=dict(value.get("target") or {}),
            budget=None if value.get("budget") is None else dict(value["budget"]),
            budget_met=bool(value.get("budget_met", True)),
            seed=int(value.get("seed") or 0),
            recipe=None if value.get("recipe") is None else dict(value["recipe"]),
            steps=tuple(Step.from_json(step) for step in value["steps"]),
            final=int(value["final"]),
            warnings=tuple(value.get("warnings") or ()),
            artifact=str(value.get("artifact") or "model.onnx"),
            use=dict(value.get("use") or {}),
        )


def describe_workload(workload: Workload) -> dict[str, Any]:
    """The facts of a workload that a report shows: names, the metric and how to read it, the shapes of the inputs."""
    metric = workload.metric
    return {
        "name": workload.name,
        "model": type(workload.model).__name__,
        "metric": metric.name,
        "higher_is_better": metric.higher_is_better,
        "bounded": metric.bounded,
        **({"decibels": True} if metric.decibels else {}),
        **({"compared": metric.says()} if metric.says() else {}),
        "input_shapes": [list(tensor.shape[1:]) for tensor in input_tensors(workload.example_inputs)],
    }


def _interval(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _complete(value: Any) -> bool:
    return value is not None and (not isinstance(value, dict) or all(_complete(entry) for entry in value.values()))
