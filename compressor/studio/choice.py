"""What a person has chosen: widths, blocks that go, the form of the numbers, epochs of recovery; and its recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compressor.evaluations.by_class import ByClass
from compressor.pruning.ranking.criteria import FPGM, L1, L2, Activation, Hessian, Taylor
from compressor.pruning.ranking.criterion import Criterion
from compressor.recipe.recipe import Recipe
from compressor.stage import Stage
from compressor.stages import ChosenWidths, Distill, Quantize, ReestimateBatchNorm, SetStructure
from compressor.target import Target

FORMS = ("float32", "int8")
# Those that judge every channel of every kind of layer; their settings are the defaults.
CRITERIA: dict[str, Criterion] = {
    "taylor": Taylor(),
    "hessian": Hessian(),
    "l1": L1(),
    "l2": L2(),
    "fpgm": FPGM(),
    "activation": Activation(),
}
# Bits that a layer's weights may have where the model is in 8: 32 leave it in float.
BITS = (8, 6, 5, 4, 3, 2, 32)
USUAL_BITS, FLOAT_BITS = BITS[0], BITS[-1]
MOST_EPOCHS = 1000
_NEEDED, _KEYS = {"widths", "drop", "form", "epochs"}, {"widths", "drop", "form", "epochs", "criterion", "bits"}


@dataclass(frozen=True, kw_only=True)
class Free:
    """What may be chosen: the widths that each group may have, largest first, and the blocks that may go.

    `inside` are the groups that go with a block. `forms` are those of `FORMS` that the model has. `norms` says whether
    it has running statistics, which a changed structure makes stale; `layers` are those whose weights may have bits of
    their own; `classes` whether it is judged by classes, so that
    a run can tell which samples flipped.
    """

    widths: Mapping[str, tuple[int, ...]]
    blocks: tuple[str, ...]
    inside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    forms: tuple[str, ...] = FORMS
    norms: bool = False
    classes: bool = False
    layers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One choice: `widths` of the groups that are narrowed, the blocks of `drop`, the `form`, `epochs` of recovery.

    `criterion`, a name in `CRITERIA`, says which channels go; `bits` are those of layers that have others than 8 in the
    form "int8".
    """

    widths: Mapping[str, int] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    form: str = "float32"
    epochs: int = 8
    criterion: str = "taylor"
    bits: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Any, free: Free) -> "Choice":
        """The choice that `to_json` gave. Raises ValueError for anything that is not `free`."""
        if not isinstance(data, dict) or not _NEEDED <= set(data) <= _KEYS:
            raise ValueError("a choice has widths, drop, form and epochs, and may have a criterion and bits")
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
        criterion = data.get("criterion", "taylor")
        if not isinstance(criterion, str) or criterion not in CRITERIA:
            raise ValueError(f"the criterion is one of {', '.join(CRITERIA)}")
        bits = data.get("bits", {})
        if not isinstance(bits, dict) or any(
            name not in free.layers or type(each) is not int or each not in BITS for name, each in bits.items()
        ):
            raise ValueError(f"bits of a layer are one of {', '.join(map(str, BITS))}")
        return cls(
            # In the order of the model, so that equal choices are equal texts.
            widths={
                name: widths[name] for name in free.widths if widths.get(name, most(free, name)) < most(free, name)
            },
            drop=tuple(name for name in free.blocks if name in drop),
            form=form,
            epochs=epochs,
            criterion=criterion,
            bits={name: bits[name] for name in free.layers if bits.get(name, USUAL_BITS) != USUAL_BITS},
        )

    def to_json(self) -> dict[str, Any]:
        """The choice as JSON values."""
        return {
            "widths": dict(self.widths),
            "drop": list(self.drop),
            "form": self.form,
            "epochs": self.epochs,
            "criterion": self.criterion,
            "bits": dict(self.bits),
        }

    def recipe(self, free: Free, target: Target, *, seed: int = 0) -> Recipe | None:
        """The recipe that does this; None where nothing was chosen.

        Widths inside of a block that goes are left out: they are no matter. Without training, statistics that the new
        structure made stale are measured anew.
        """
        lost = {name for block in self.drop for name in free.inside.get(block, ())}
        widths = tuple(f"{name}={width}" for name, width in self.widths.items() if name not in lost)
        stages: list[Stage] = []
        if widths or self.drop:
            stages.append(SetStructure(widths=widths, drop=self.drop, criterion=CRITERIA[self.criterion]))
            if self.epochs:
                stages.append(Distill(epochs=self.epochs))
            elif free.norms:
                stages.append(ReestimateBatchNorm())
        if self.form == "int8" and self.form in free.forms:
            gone = tuple(f"{block}." for block in self.drop)
            layers = tuple(f"{name}={bits}" for name, bits in self.bits.items() if not name.startswith(gone))
            stages.append(Quantize(mixed=ChosenWidths(layers=layers) if layers else None))
        if not stages:
            return None
        return Recipe(
            stages=tuple(stages),
            name="studio",
            description="Chosen in compressor studio.",
            seed=seed,
            batch_size=target.batch_size if target.batch_size != 1 else None,
            threads=target.threads if target.threads != 1 else None,
            evaluations=(ByClass(),) if free.classes else (),
        )


def most(free: Free, name: str) -> int:
    """The whole width of a group."""
    return free.widths[name][0]


def choice_of(recipe: Recipe, free: Free) -> Choice | None:
    """The choice whose structure and training `recipe` has; None where it is no recipe of the studio's for this model.

    Its form counts as float: it is about the structure.
    """
    structure = next((stage for stage in recipe.stages if isinstance(stage, SetStructure)), None)
    training = next((stage for stage in recipe.stages if isinstance(stage, Distill)), None)
    if structure is None:
        return None
    name = next((name for name, criterion in CRITERIA.items() if criterion == structure.criterion), None)
    data = {
        "widths": structure.wanted,
        "drop": list(structure.drop),
        "form": "float32",
        "epochs": 0 if training is None else training.epochs,
        "criterion": name,
    }
    try:
        return Choice.from_json(data, free)
    except ValueError:
        return None
