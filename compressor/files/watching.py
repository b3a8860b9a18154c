"""Who is told how far a file from elsewhere has come while it is opened; importing it loads no torch."""

from collections.abc import Iterable, Iterator

from compressor.sessions import Feeds


class Watcher:
    """Who is told how far a file has come: nobody, unless a method says otherwise."""

    def found(self, dtypes: dict[str, str], outside_bytes: int) -> None:
        """What the file declares holds: the types of its inputs by name, and the bytes of weights in other files."""

    def runs(self, *, spare: bool = False) -> None:
        """The file is about to be run for the first time, or on other inputs than those that it did not run on.

        `spare` ones are made up, and others follow that take less.
        """

    def ran(self) -> None:
        """The file was opened and run once, and is not beyond the limits."""


class Counted:
    """Counts the inputs that a file was run on until it ran, those `skipped` among them, and tells `watcher`."""

    def __init__(self, watcher: Watcher, skipped: int) -> None:
        self.watcher, self.count = watcher, skipped

    def of(self, tried: Iterable[Feeds], *, spare: int = 0) -> Iterator[Feeds]:
        """`tried`, counted as they are taken; the first `spare` of all are followed by some that take less."""
        for feeds in tried:
            self.count += 1
            self.watcher.runs(spare=self.count <= spare)
            yield feeds
