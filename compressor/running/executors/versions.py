"""What workers elsewhere must have in common with this process: equal stages come of equal code alone."""

import platform
from collections.abc import Mapping

from compressor.errors import ExecutorError
from compressor.identity.package import package_code
from compressor.running.folder import versions

_SHOWN = 3


def facts() -> dict[str, str]:
    """Python, the packages that numbers depend on, and this package's own code."""
    return {"python": platform.python_version(), **versions(), "code of compressor": package_code()[:12]}


def check_alike(workers: Mapping[str, Mapping[str, str]]) -> None:
    """Raises ExecutorError where one of `workers`, the facts by their names, has other versions than this process."""
    own = facts()
    wrong = [
        f"{name} has {what} {found.get(what) or 'nowhere'} (here {value or 'nowhere'})"
        for name, found in workers.items()
        for what, value in own.items()
        if found.get(what) != value
    ]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ExecutorError(
            f"workers have other versions, whose results would not be the same: {'; '.join(wrong[:_SHOWN])}{more}; "
            "install there what is installed here"
        )
