"""Classes that other packages add by entry points: those that work, and why the others are left out."""

import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any

from compressor.machine import named
from compressor.stage import snake_case, stage_name

STAGES, CRITERIA = "compressor.stages", "compressor.criteria"


class PluginWarning(UserWarning):
    """A class of another package that cannot be used and is left out; what does without it goes on."""


@dataclass(kw_only=True)
class _Plugin:
    """What an entry point brought: a class, or the reason why it is left out.

    `where` names the entry point and the package, `names` are those that somebody may use for the class.
    """

    where: str
    names: set[str]
    kind: type[Any] | None = None
    reason: str = ""

    def leave_out_(self, error: BaseException) -> None:
        """Notes and tells why it cannot be used."""
        said = str(error).strip().partition("\n")[0]
        fault = said if isinstance(error, _UnfitError) else f"{type(error).__name__}: {said}".rstrip(": ")
        self.reason = f"{self.where}: {fault}; update or uninstall that package"
        if self.reason not in _told:
            _told.add(self.reason)
            warnings.warn(f"a plug-in is left out, {self.reason}", PluginWarning, stacklevel=2)


class _UnfitError(ValueError):
    pass


# A change of the path finds the same plug-ins again.
_told: set[str] = set()
# What `usable` is trying: a class whose fields hold its own kind would be tried without end.
_tried: set[type[Any]] = set()


def by_name(
    built_in: Iterable[type[Any]], group: str, wanted: str, fits: Callable[[type[Any]], bool]
) -> dict[str, type[Any]]:
    """These classes and those of the installed entry points of `group`, by the names that recipes give them.

    What cannot be imported, does not fit (`wanted` says what would), or shares a name with another is left out with a
    PluginWarning; `reasons` tells why to somebody who uses the name.
    """
    own = {stage_name(kind): kind for kind in built_in}
    alike: dict[str, list[_Plugin]] = defaultdict(list)
    for plugin in _plugins(group, tuple(sys.path)):
        if plugin.kind is not None and not plugin.reason:
            with _left_out_where_it_raises(plugin):
                if not fits(plugin.kind):
                    raise _UnfitError(f"wanted is {wanted}, which {plugin.kind.__name__} is not")
                alike[stage_name(plugin.kind)].append(plugin)
    found = dict(own)
    for name, plugins in alike.items():
        kinds = {plugin.kind for plugin in plugins}
        for plugin in plugins:
            if name in own and plugin.kind is not own[name]:
                plugin.names.discard(name)
                plugin.leave_out_(_UnfitError(f"{name!r} is what comes with the package; the class needs another name"))
            elif len(kinds) > 1:
                others = ", ".join(each.where for each in plugins if each.kind is not plugin.kind)
                plugin.leave_out_(_UnfitError(f"{name!r} is also {others}; one of them needs another name"))
            elif plugin.kind is not None:
                found[name] = plugin.kind
    return found


def usable(kinds: dict[str, type[Any]], group: str, use: Callable[[type[Any]], object]) -> dict[str, type[Any]]:
    """Those of `kinds` that `use` can be called with; plug-ins for which it raises are left out with a PluginWarning.

    The error of a class that is no plug-in of `group` is raised.
    """
    plugins = {plugin.kind: plugin for plugin in _plugins(group, tuple(sys.path)) if plugin.kind is not None}
    for kind in kinds.values():
        if kind not in plugins:
            use(kind)
        elif kind in _tried:
            plugins[kind].leave_out_(_UnfitError("its fields hold its own kind, which has no end"))
        elif not plugins[kind].reason:
            _tried.add(kind)
            with _left_out_where_it_raises(plugins[kind]):
                use(kind)
            _tried.discard(kind)
    return {name: kind for name, kind in kinds.items() if kind not in plugins or not plugins[kind].reason}


def reasons() -> dict[str, str]:
    """Why plug-ins are left out, by the names that somebody may use for them."""
    path = tuple(sys.path)
    return {
        name: plugin.reason
        for group in (STAGES, CRITERIA)
        for plugin in _plugins(group, path)
        if plugin.reason
        for name in plugin.names
    }


@cache
def _plugins(group: str, path: tuple[str, ...]) -> tuple[_Plugin, ...]:
    """The plug-ins on `path`. Finding them reads the folders there, and recipes ask again and again."""
    del path
    return tuple(_loaded(group, *found) for found in _entries(group))


def _loaded(group: str, entry: EntryPoint | Exception, package: str) -> _Plugin:
    if isinstance(entry, Exception):
        plugin = _Plugin(where=f"one of {package} in the group {group}", names=set())
        plugin.leave_out_(entry)
        return plugin
    plugin = _Plugin(
        where=f"{entry.name!r} of {package} in the group {group} ({entry.value})",
        names={entry.name, snake_case(entry.value.rpartition(":")[2].strip())},
    )
    with _left_out_where_it_raises(plugin):
        kind = entry.load()
        if not isinstance(kind, type) or not is_dataclass(kind):
            got = f"the class {kind.__name__}" if isinstance(kind, type) else f"an object of type {type(kind).__name__}"
            raise _UnfitError(f"wanted is a dataclass, got {got}")
        plugin.kind = kind
        plugin.names.add(stage_name(kind))
    return plugin


@contextmanager
def _left_out_where_it_raises(plugin: _Plugin) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  # code of another package may raise anything, SystemExit too
        plugin.leave_out_(error)


def _entries(group: str) -> Iterator[tuple[EntryPoint | Exception, str]]:
    """Every entry point of `group` with the package that it is of; an error where a package's list cannot be read."""
    seen: set[str] = set()
    for distribution in distributions():
        name, package = _named(distribution)
        # The first on the path is the one that is imported.
        if name in seen:
            continue
        seen.add(name)
        try:
            if group in (distribution.read_text("entry_points.txt") or ""):
                yield from ((entry, package) for entry in distribution.entry_points.select(group=group))
        except (UnicodeDecodeError, ValueError, TypeError) as error:
            if not isinstance(error, UnicodeDecodeError) or group.encode() in error.object:
                yield error, package


def _named(distribution: Distribution) -> tuple[str, str]:
    """The normalised name of a package, and its name with its version."""
    package = named(distribution)
    name = package if package.startswith(("a package", "the package")) else package.partition(" ")[0]
    return re.sub(r"[-_.]+", "-", name).lower(), package
