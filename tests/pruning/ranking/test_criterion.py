"""A criterion of another package joins as an instance, by name in recipes, and in the catalogue."""

import copy
import importlib
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from compressor import Pipeline, Recipe
from compressor.batches import Batches
from compressor.cli.stage_listing import listing
from compressor.errors import ContractError, RecipeError, StageError
from compressor.plugins import PluginWarning
from compressor.pruning.choice.targets import Macs
from compressor.pruning.ranking.criteria import L1, criteria
from compressor.pruning.ranking.criterion import Case, across_groups, channel_scores, unranked
from compressor.stage import Context
from compressor.stages import PruneChannels, ShrinkStructure
from compressor.storage import read_json
from compressor.structure.couplings import Coupled
from compressor.testing import check_stage
from compressor.workload import Workload
from workbench import ROOT
from workbench.same_data import same_data

# The example of the documentation: the only file that a package needs, beside the lines in its pyproject.toml.
_PAGE = (ROOT / "docs" / "adding_a_stage.md").read_text(encoding="utf-8")
(OUTSIDE,) = re.findall(r"```python\n(# largest\.py\n.*?)```", _PAGE, re.DOTALL)


def install(folder: Path, name: str, source: str, entry: str) -> None:
    """What pip leaves behind of a package with one module and one entry point."""
    (folder / f"{name}.py").write_text(source)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[compressor.criteria]\n{entry}\n")


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package from elsewhere that brings a criterion, installed for one test."""
    install(tmp_path, "outside_criterion", OUTSIDE, "largest_weight = outside_criterion:LargestWeight")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("outside_criterion")
    monkeypatch.delitem(sys.modules, "outside_criterion")


def mlp() -> nn.Sequential:
    """4 -> 4 -> 2 whose hidden units have the weights 3, (2, 2), 1 and (2.5, 0.1): the largest rank 0, 3, 1, 2."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 0, 0, 0], [2, 2, 0, 0], [0, 0, 1, 0], [2.5, 0, 0, 0.1]]))
    return model.eval()


def workload_of(model: nn.Module) -> Workload:
    data = Batches((torch.eye(4).repeat(4, 1), torch.arange(16) % 2), batch_size=8)
    return same_data(model, data, torch.eye(4)[:2], loss=nn.functional.cross_entropy)


def kept(stage: Any, workload: Workload) -> tuple[list[int], Context]:
    """The hidden units that a stage leaves, and its context."""
    context = Context(progress=False)
    stage.apply(copy.deepcopy(workload.model), workload, context)
    return context.plan[-1]["tensors"]["0.weight"]["0"], context


def test_an_instance_is_all_that_the_stages_need(outside: ModuleType) -> None:
    """Half of four units goes, those of the least largest weight; by the sum of weights others would."""
    workload, largest = workload_of(mlp()), outside.LargestWeight(power=2)
    units, context = kept(PruneChannels(remove=0.5, criterion=largest, align=1), workload)
    assert units == [0, 3]
    assert kept(PruneChannels(remove=0.5, criterion=L1(), align=1), workload)[0] == [0, 1]
    why = context.plan[-1]["why"]
    assert why["criterion"] == "LargestWeight(power=2)"
    assert why["kept_scores"] == [9.0, 6.25]
    assert why["removed_scores"] == [4.0, 1.0]
    shrink = ShrinkStructure(target=Macs(0.5), criterion=largest, blocks=(), align=2, batches=1, rounds=1)
    assert kept(shrink, workload)[0] == [0, 3]


@pytest.mark.slow
def test_a_run_with_it_reports_it(outside: ModuleType, tiny_workload: Workload, tmp_path: Path) -> None:
    """The contract of stages holds, and report.json names the criterion with its parameters."""
    stage = PruneChannels(remove=0.4, criterion=outside.LargestWeight(), align=4)
    check_stage(stage, tiny_workload)
    Pipeline([stage]).run(tiny_workload, out=tmp_path / "run", progress=False)
    (step,) = [
        step for step in read_json(tmp_path / "run" / "report.json")["steps"] if step["stage"] == "prune_channels"
    ]
    assert step["parameters"]["criterion"] == {"largest_weight": {"power": 1.0}}


def test_recipes_name_it_and_come_back_as_they_were(outside: ModuleType) -> None:
    """Installed, it is written and read like one of the package's own, with its own refusals at their line."""
    text = "name: mine\nstages:\n  - prune_channels: {remove: 0.5, criterion: {largest_weight: {power: 2.0}}}\n"
    recipe = Recipe.loads(text)
    assert recipe.stages == (PruneChannels(remove=0.5, criterion=outside.LargestWeight(power=2.0)),)
    assert Recipe.loads(recipe.dump()) == recipe
    short = Recipe.loads("name: mine\nstages: [{shrink_structure: {target: {macs: 0.5}, criterion: largest_weight}}]")
    assert short.stages[0].criterion == outside.LargestWeight()  # type: ignore[attr-defined]  # the recipe says so
    with pytest.raises(RecipeError, match=r"r\.yaml:2: power must be positive, got -1"):
        Recipe.loads(
            textwrap.dedent("""\
                stages:
                  - prune_channels: {remove: 0.5, criterion: {largest_weight: {power: -1.0}}}
                """),
            source="r.yaml",
        )
    with pytest.raises(RecipeError, match="did you mean 'largest_weight'"):
        Recipe.loads("stages: [{prune_channels: {remove: 0.5, criterion: largest_weigth}}]")


def test_the_catalogue_lists_it_while_it_is_installed(outside: ModuleType) -> None:
    """`compressor stages` shows it among the choices, with what it takes, beside the nine that come along."""
    assert criteria()["largest_weight"] is outside.LargestWeight
    assert len(criteria()) == 10
    for stage in ("prune_channels", "shrink_structure"):
        (criterion,) = [entry for entry in listing()[stage].parameters if entry.name == "criterion"]
        assert criterion.type.endswith("| random | largest_weight")
        assert criterion.default == "taylor"
        assert [(entry.name, entry.default) for entry in criterion.choices["largest_weight"]] == [("power", 1.0)]


@dataclass(frozen=True, kw_only=True)
class Given:
    """Hands out what it was given."""

    scores_by_name: tuple[tuple[str, Any], ...] = ()

    def scores(self, case: Case) -> dict[str, Tensor]:
        assert all(isinstance(group, Coupled) for group in case.groups)
        return dict(self.scores_by_name)


@dataclass(frozen=True, kw_only=True)
class Shares(Given):
    """The same, with both of what a class may say of itself."""

    unranked: ClassVar[str] = "nobody gave it a share"
    compares_groups: ClassVar[bool] = True


def test_a_recipe_cannot_name_what_is_not_installed() -> None:
    """Writing the recipe fails with the way to join, not reading it."""
    with pytest.raises(ValueError, match=r"holds a Given, which no recipe can name.*group \"compressor\.criteria\""):
        Recipe(stages=(PruneChannels(remove=0.5, criterion=Given()),)).dump()
    assert "largest_weight" not in criteria()


def test_a_second_criterion_of_a_name_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second `L1` would make recipes ambiguous: the one that comes along stays, and both places are named."""
    source = OUTSIDE.replace("LargestWeight", "L1")
    install(tmp_path, "twice_l1", source, "l1 = twice_l1:L1")
    before = criteria()["l1"]
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(PluginWarning, match=r"\(twice_l1:L1\): 'l1' is what comes with the package"):
        assert criteria()["l1"] is before


def test_what_gets_no_score_is_left_alone_with_the_reason() -> None:
    """A group that is left out is locked; the class may say why."""
    workload = workload_of(mlp())
    assert unranked(Given()) == "given gives it no scores"
    assert unranked(Shares()) == "nobody gave it a share"
    context, stage = Context(progress=False), PruneChannels(remove=0.5, criterion=Shares(), align=1)
    with pytest.raises(StageError, match="0: nobody gave it a share"):
        stage.apply(copy.deepcopy(workload.model), workload, context)
    assert {"layer": "0", "reason": "nobody gave it a share"} in context.details["locked"]


def test_scores_go_over_their_mean_unless_they_compare() -> None:
    """Across groups 1, 2 and 3 become 0.5, 1 and 1.5; shares that compare stay as they are."""
    scores = torch.tensor([1.0, 2.0, 3.0])
    assert across_groups(Given())(scores).tolist() == [0.5, 1.0, 1.5]
    assert across_groups(Shares())(scores).tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("scores", "got"), [(torch.ones(4, 1), r"shape \(4, 1\)"), (torch.ones(3), r"shape \(3,\)"), ([1, 2], "a list")]
)
def test_scores_of_another_shape_are_refused(scores: Any, got: str) -> None:
    """One number for each channel, nothing else, and the message says of which group and how many."""
    group = Coupled(name="conv1", width=4, parts=(), makes_output=False, opaque=False)

    @dataclass(frozen=True)
    class Graph:
        groups: tuple[Coupled, ...]

    model = mlp()
    with pytest.raises(ContractError, match=rf"given has to give conv1 a tensor of shape \(4,\).*gave {got}"):
        channel_scores(Given(scores_by_name=(("conv1", scores),)), model, Graph((group,)), workload_of(model), 0)


@pytest.mark.parametrize("wrong", [L1, "l1", object()])
@pytest.mark.parametrize("settings", [{"remove": 0.5}, {"target": Macs(0.5)}])
def test_what_is_no_criterion_is_refused_at_once(wrong: Any, settings: dict[str, Any]) -> None:
    """A class in place of an instance, a name or anything else is told when the stage is made."""
    stage = PruneChannels if "remove" in settings else ShrinkStructure
    with pytest.raises(
        ValueError, match=r"criterion is an instance of a frozen dataclass .* got (the class L1|str|object)"
    ):
        stage(criterion=wrong, **settings)
