"""The stage that shipped made once more from the states before it: whether it gives the very same files."""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import RunFolderError, TrustError, WrongUseError
from compressor.recipe.recipe import Recipe
from compressor.report.record import RunRecord
from compressor.running.pipeline import Pipeline
from compressor.storage import read_json
from compressor.structure.checkpoint import PLAN_FILE, WEIGHTS_FILE
from compressor.target import Isa, Target
from compressor.trust.tree import digest_of
from compressor.trust.verification import Checked
from compressor.workload import Workload

_MADE = ("model.onnx", PLAN_FILE, WEIGHTS_FILE)
# What the recipe is written as is read again as any other.
_READ = "get the folder again"


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """What making a stage once more gave: which `stage`, the `same` files, and those that are `others` now."""

    stage: str
    same: tuple[str, ...]
    others: tuple[str, ...]

    def require(self) -> "Rerun":
        """Itself; raises TrustError where a file is another one."""
        if not self.others:
            return self
        raise TrustError(
            f"{self.stage}, made again, gives another {' and another '.join(self.others)}. Where nobody changed the "
            "files, the stage chose by measured times, which differ from run to run and from machine to machine, or "
            "computed on another processor or with another number of torch's threads"
        )

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON values."""
        return {"stage": self.stage, "same": list(self.same), "others": list(self.others)}


def rerun(checked: Checked, workload: Workload, *, progress: bool = False) -> Rerun:
    """Makes the stage that shipped once more, in a temporary folder, from the stages before it as they are on disk.

    `checked` is a whole folder that holds, `workload` what it was run with. Raises WrongUseError where the run was of
    no recipe, and RunFolderError, key by key, where workload, versions or the package's code are others now.
    """
    folder = checked.require().folder
    if checked.only is not None or "run.json" not in checked.manifest.files:
        raise WrongUseError(f"a run is made again from its whole folder; {folder} is none, or one file was named")
    report = RunRecord.from_json(read_json(folder / "report.json", way_out=_READ))
    recipe = report.recipe
    if recipe is None:
        raise WrongUseError(
            f"the run in {folder} was given stages in Python and no recipe, so nothing here can make them again"
        )
    pipeline = Pipeline.from_recipe(Recipe.loads(json.dumps(recipe), source=f"the recipe in {folder}"))
    target = report.target
    stages = folder / "stages"
    made = next((path for path in stages.glob(f"{report.final:02d}-*") if path.is_dir()), None)
    if made is None or not {"batch_size", "threads", "isa"} <= target.keys():
        raise TrustError(f"{folder} lacks the stage {report.final} that its report ships, or what it ran on; {_READ}")
    with tempfile.TemporaryDirectory(prefix="compressor-") as place:
        again = Path(place) / "run"
        again.mkdir()
        shutil.copyfile(folder / "run.json", again / "run.json")
        for stage in stages.iterdir():
            if stage != made:
                shutil.copytree(stage, again / "stages" / stage.name)
        try:
            pipeline.run(
                workload,
                target=Target(batch_size=target["batch_size"], threads=target["threads"], isa=Isa(target["isa"])),
                out=again,
                seed=report.seed,
                progress=progress,
            )
        except RunFolderError as error:
            differing = [line for line in error.sentence.splitlines() if line.startswith("  ")]
            says = f"{folder} cannot be made again from what is given now:"
            if not differing:
                raise
            raise RunFolderError(
                "\n".join([says, *differing, "give workload, versions and code of the run"])
            ) from error
        names = [f"stages/{made.name}/{name}" for name in _MADE]
        wanted = {name: digest for name in names if (digest := checked.manifest.files.get(name)) is not None}
        got = {name: digest_of(again, name) for name in names if (again / name).is_file()}
    same = tuple(name for name in names if name in wanted and got.get(name) == wanted[name])
    return Rerun(stage=made.name, same=same, others=tuple(name for name in {**wanted, **got} if name not in same))
