"""What becomes of one network of torchvision or timm: pruned, compared, trained, exported and quantized.

python -m benchmarks.structure.hub_process FAMILY

The process of its own that `benchmarks.structure.hub` starts for every family. Each step is printed as it begins; the
last line is the outcome as JSON.
"""

import copy
import json
import resource
import sys
import warnings
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import Any

import torch
from torch import nn

from benchmarks.structure.hub_members import MEMBERS, Member
from compressor.errors import CompressorError
from compressor.pruning.ranking.criteria import L1
from compressor.pruning.ranking.scope import PerLayer
from compressor.stage import Context
from compressor.stages.channel_pruning import PruneChannels
from compressor.stages.quantization import Quantize
from compressor.training.loop import train
from compressor.training.optimizers.choices import SGD
from compressor.training.settings import TrainingSettings
from compressor.workload import Workload, predict
from workbench.zoo.architecture import Architecture, floats
from workbench.zoo.check import (
    WrongError,
    check_export,
    check_structure,
    parameter_count,
    randomized_,
    reasons_of,
    workload_of,
)

PRUNE = PruneChannels(remove=0.3, criterion=L1(), scope=PerLayer(), align=1)
STEPS = ("prune", "compare", "train", "export", "quantize")
# A network that takes more would take it from whatever else runs on the machine.
_GIBIBYTES = 12


@dataclass(frozen=True, kw_only=True)
class HubOutcome:
    """What became of a member: "passed", "refused" (by one of the product's own errors) or "failed", at which step."""

    family: str
    library: str
    name: str
    outcome: str
    step: str = ""
    reason: str = ""
    parameters_before: int = 0
    parameters_after: int = 0
    exporter: str = ""
    locked: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def check_member(member: Member) -> HubOutcome:
    """Prunes `member` by about a third, compares it with the masked original, trains a step, exports and quantizes it.

    The comparison is that of the zoo, in double precision and by the plan alone. Every step is printed as it begins.
    """
    start = monotonic()
    torch.manual_seed(0)
    known: dict[str, Any] = {"family": member.family, "library": member.library, "name": member.name}
    step = "build"
    context = Context(progress=False)
    try:
        architecture = Architecture(name=member.family, build=member.build, sample=floats(*member.shape))
        model = randomized_(architecture.build()).eval()
        known |= dict.fromkeys(("parameters_before", "parameters_after"), parameter_count(model))
        workload = workload_of(architecture, model)
        for step in STEPS:
            print(step, flush=True)
            if step == "prune":
                pruned = PRUNE.apply(copy.deepcopy(model), workload, context).eval()
                known["parameters_after"] = parameter_count(pruned)
            elif step == "compare":
                check_structure(model, pruned, context.plan, workload)
            elif step == "train":
                train(
                    copy.deepcopy(pruned),
                    workload,
                    TrainingSettings(epochs=1, optimizer=SGD(rate=1e-4)),
                    context=context,
                    label="a step",
                )
            elif step == "export":
                known["exporter"] = check_export(pruned, workload, architecture)
            else:
                _quantize(pruned, workload)
        outcome, step, reason = "passed", "", ""
    except CompressorError as error:
        outcome, reason = "refused", str(error)
    except WrongError as error:
        outcome, reason = "failed", str(error)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is the outcome
        outcome, reason = "failed", f"{type(error).__name__}: {error}"
    return HubOutcome(
        **known,
        outcome=outcome,
        step=step,
        reason=reason,
        locked=reasons_of(context),
        seconds=monotonic() - start,
    )


def _quantize(pruned: nn.Module, workload: Workload) -> None:
    integers = Quantize().apply(copy.deepcopy(pruned), workload, Context(progress=False))
    with torch.no_grad():
        wanted, given = predict(pruned, workload.example_inputs), predict(integers, workload.example_inputs)
    if given.shape != wanted.shape or not given.isfinite().all():
        raise WrongError(f"quantized, it gives {tuple(given.shape)} with values that are not finite, or another shape")


def main() -> None:
    member = next(member for member in MEMBERS if member.family == sys.argv[1])
    limit = _GIBIBYTES << 30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.simplefilter("ignore")
    print(json.dumps(asdict(check_member(member))))


if __name__ == "__main__":
    main()
