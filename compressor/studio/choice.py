"""What a person has chosen: widths, blocks that go, the form of the numbers, epochs of recovery; and its recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compressor.recipe.recipe import Recipe
from compressor.stage import Stage
from compressor.stages import Distill, Quantize, SetStructure
from compressor.target import Target

FORMS = ("float32", "int8")
MOST_EPOCHS = 1000


@dataclass(frozen=True, kw_only=True)
class Free:
    """What may be chosen: the widths that each group may have, largest first, and the blocks that may go.

    `inside` are the groups that go with a block. `forms` are those of `FORMS` that the model has.
    """

    widths: Mapping[str, tuple[int, ...]]
    blocks: tuple[str, ...]
    inside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    forms: tuple[str, ...] = FORMS


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One choice: `widths` of the groups that are narrowed, the blocks of `drop`, the `form`, `epochs` of recovery."""

    widths: Mapping[str, int] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    form: str = "float32"
    epochs: int = 8

    @classmethod
    def from_json(cls, data: Any, free: Free) -> "Choice":
        """The choice that `to_json` gave. Raises ValueError for anything that is not `free`."""
        if not isinstance(data, dict) or set(data) != {"widths", "drop", "form", "epochs"}:
            raise ValueError("a choice has widths, drop, form and epochs")
        widths, drop, form, epochs = (data[key] for key in ("widths", "drop", "form", "epochs"))
        if not isinstance(widths, dict) or any(
            name not in free.widths or type(width) is not int or not 1 <= width <= free.widths[name][0]
            for name, width in widths.items()
        ):
            raise ValueError("a width is a whole number from 1 to what the group has")
        if (
            not isinstance(drop, list)
            or len(set(map(str, drop))) < len(drop)
            or any(name not in free.blocks for name in drop)
        ):
            raise ValueError("a block that goes is one of those that can")
        if form not in free.forms:
            raise ValueError(f"the form is one of {', '.join(free.forms)}")
        if type(epochs) is not int or not 0 <= epochs <= MOST_EPOCHS:
            raise ValueError(f"epochs are from 0 to {MOST_EPOCHS}")
        return cls(
            # In the order of the model, so that equal choices are equal texts.
            widths={
                name: widths[name] for name in free.widths if widths.get(name, most(free, name)) < most(free, name)
            },
            drop=tuple(name for name in free.blocks if name in drop),
            form=form,
            epochs=epochs,
        )

    def to_json(self) -> dict[str, Any]:
        """The choice as JSON values."""
        return {"widths": dict(self.widths), "drop": list(self.drop), "form": self.form, "epochs": self.epochs}

    def recipe(self, free: Free, target: Target, *, seed: int = 0) -> Recipe | None:
        """The recipe that does this; None where nothing was chosen.

        Widths inside of a block that goes are left out: they are no matter.
        """
        lost = {name for block in self.drop for name in free.inside.get(block, ())}
        widths = tuple(f"{name}={width}" for name, width in self.widths.items() if name not in lost)
        stages: list[Stage] = []
        if widths or self.drop:
            stages.append(SetStructure(widths=widths, drop=self.drop))
            if self.epochs:
                stages.append(Distill(epochs=self.epochs))
        if self.form == "int8":
            stages.append(Quantize())
        if not stages:
            return None
        return Recipe(
            stages=tuple(stages),
            name="studio",
            description="Chosen in compressor studio.",
            seed=seed,
            batch_size=target.batch_size if target.batch_size != 1 else None,
            threads=target.threads if target.threads != 1 else None,
        )


def most(free: Free, name: str) -> int:
    """The whole width of a group."""
    return free.widths[name][0]
