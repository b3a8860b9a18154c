"""The digests of all that a run is given: by name, so that what was changed can be said by name."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from typing import Any

from torch import nn

from compressor.identity.data import DataIdentifier
from compressor.identity.values import Digest, Identifier
from compressor.kept_state import private_copy
from compressor.stage import Context, Stage, stage_name
from compressor.storage import sha256
from compressor.training.streams import said_length
from compressor.workload import Workload

DATA = ("train", "calibration", "validation", "test")
# What the reference, the model as it was given, does not depend on.
_ONLY_STAGES = {"train", "calibration", "validation", "loss", "other_inputs"}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a run is given. `told` is for people and for the next run: digests by name, "not known" where there is none.

    `reference` and `stages` are for keys: what the reference and each of the stages depend on. Something that is not
    known is another thing in every run, so that nothing made with it is taken for what it would become now. `loaders`
    says what the loaders of the data keep themselves, by set. `known` is how many of the reference and the stages, in
    their order, depend on nothing that is not known.
    """

    told: dict[str, Any]
    reference: str
    stages: tuple[str, ...]
    warnings: tuple[str, ...]
    loaders: Mapping[str, str]
    known: int


def identify(workload: Workload, stages: Sequence[Stage], *, progress: bool = False) -> Identity:
    """What `workload` and `stages` are, by content and code. Raises WorkloadError for data that cannot be read."""
    identifier = Identifier()
    data = DataIdentifier(identifier, progress=progress)
    found: dict[str, Digest] = {}
    for name in (item.name for item in fields(workload) if item.name != "name"):
        value = getattr(workload, name)
        if name in DATA:
            found[name] = data.digest(name, value)
        elif name == "model":
            # What it remembers of its calls is none of its content.
            found[name] = identifier.digest(private_copy(value))
        else:
            found[name] = identifier.digest(value)
    own = [identifier.digest(stage) for stage in stages]
    hidden = [{stage_name(stage): _hidden(stage, identifier)} for stage in stages]
    keys = {name: _key(digest) for name, digest in found.items()}
    shared = sha256(repr(sorted(keys.items())).encode())
    return Identity(
        told={name: _told(digest) for name, digest in found.items()} | {"stage_inputs": hidden},
        reference=sha256(repr(sorted((name, key) for name, key in keys.items() if name not in _ONLY_STAGES)).encode()),
        stages=tuple(sha256(f"{shared} {_key(digest)}".encode()) for digest in own),
        warnings=tuple(
            _warning(f"{name} of the workload" if name in found else name, digest.unknown)
            for name, digest in [*found.items(), *zip(map(stage_name, stages), own, strict=True)]
            if digest.unknown
        ),
        loaders=data.says,
        known=_known({name for name, digest in found.items() if digest.unknown}, own),
    )


def knowing(context: Context, workload: Workload, stage: Stage) -> Context:
    """`context` with what a training by `stage` depends on besides the model, by content, where it keeps snapshots.

    As it is where a run has told it. Data that do not say how long they are are not read for it. Raises WorkloadError
    for data that cannot be read.
    """
    if context.folder is None or context.known:
        return context
    identifier = Identifier()
    data = DataIdentifier(identifier, progress=context.progress)
    sets = [name for name in ("train", "validation") if said_length(getattr(workload, name)) is not None]
    known = {name: data.digest(name, getattr(workload, name)).text for name in sets}
    known |= {name: identifier.digest(getattr(workload, name)).text for name in ("loss", "metric", "others")}
    return replace(context, known=known | {"stage": identifier.digest(stage).text})


def content(model: nn.Module) -> str | None:
    """A digest of all that `model` is, weights, attributes and code; None where that cannot be known."""
    found = Identifier().digest(private_copy(model))
    return None if found.unknown else found.text


def _hidden(stage: Stage, identifier: Identifier) -> dict[str, str]:
    """The digests of what the parameters of a stage do not show: its code, and what is given as an object."""
    given = [(item, getattr(stage, item.name)) for item in fields(stage)]  # type: ignore[arg-type] # a dataclass
    hidden = {item.name: value for item, value in given if not (item.repr and _is_plain(value))}
    return {name: _told(identifier.digest(value)) for name, value in [("code", type(stage)), *hidden.items()]}


def _is_plain(value: Any) -> bool:
    """Whether a recipe says all of `value`: plain data, and the package's own value objects of plain data."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if is_dataclass(value) and type(value).__module__.partition(".")[0] == __name__.partition(".")[0]:
        return all(_is_plain(getattr(value, item.name)) for item in fields(value))
    return value is None or isinstance(value, bool | int | float | str | Enum)


def _known(unknown: set[str], stages: Sequence[Digest]) -> int:
    if unknown:
        return 1 if unknown <= _ONLY_STAGES else 0
    return 1 + next((number for number, digest in enumerate(stages) if digest.unknown), len(stages))


def _key(digest: Digest) -> str:
    return secrets.token_hex() if digest.unknown else digest.text


def _told(digest: Digest) -> str:
    return f"not known: it holds {', '.join(digest.unknown)}" if digest.unknown else digest.text


def _warning(what: str, unknown: tuple[str, ...]) -> str:
    return (
        f"{what} holds {', '.join(unknown)}: whether it is the same in another run cannot be known, so stages that "
        "depend on it are never taken from disk"
    )
