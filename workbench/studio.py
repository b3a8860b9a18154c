"""`compressor studio` in a process of its own, as a person starts it, or in a thread; a picture of a long network."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compressor.studio import serving
from compressor.studio.access import Access
from compressor.studio.desk import Desk
from compressor.studio.picture import Operator, Picture
from workbench import ROOT

_LINK = re.compile(r"^(to .*): +(http\S+)$")


class Studio:
    """The studio of `workload` with its folder `out`, on a free port that it keeps; further words go to its command.

    `end` stops it in order, `kill` at once; `begin` starts it again at the same address. Timing waits for nobody.
    """

    def __init__(self, workload: str, out: Path, *words: str, cwd: Path = ROOT) -> None:
        self._words = ["--workload", workload, "--out", str(out), *words]
        self._cwd, self._port = cwd, 0
        self._given: set[str] = set()
        self._latest: dict[str, str] = {}
        self.said: list[str] = []
        self.begin()

    def begin(self) -> None:
        """Starts it, and waits for its links."""
        own = {"PYTHONPATH": str(ROOT), "COMPRESSOR_QUIET_SECONDS": "0", "COMPRESSOR_TURNS": "off"}
        # A stage that an earlier run has made would be taken from there, and nothing would be seen of its training.
        own |= {"COMPRESSOR_STORE": "off"}
        command = [sys.executable, "-m", "compressor.cli", "studio", *self._words, "--port", str(self._port)]
        self._latest = {}
        self._process = subprocess.Popen(
            command, cwd=self._cwd, env={**os.environ, **own}, stderr=subprocess.PIPE, text=True
        )
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()
        found = re.search(r":(\d+)/", self.link("to watch"))
        self._port = int(found[1]) if found else 0
        self._given.clear()

    def link(self, whom: str = "to edit", seconds: float = 120.0) -> str:
        """A link that was not given before: "to edit", "to edit, ada" or "to watch". Raises TimeoutError."""
        end = time.monotonic() + seconds
        while self._latest.get(whom, "") in {"", *self._given}:
            if time.monotonic() > end or self._process.poll() is not None:
                raise TimeoutError(f"no link {whom}: {self.said}")
            time.sleep(0.02)
        self._given.add(self._latest[whom])
        return self._latest[whom]

    @property
    def cpu_seconds(self) -> float:
        """Seconds that all processors together have spent in it, in steps of a hundredth; of Linux."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """Ends it as a power cut would."""
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """Ends it as Ctrl-C does."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                self.said.append(line.rstrip())
                if found := _LINK.match(line.rstrip()):
                    self._latest[found[1]] = found[2]


@contextmanager
def served(desk: Desk) -> Iterator[tuple[Access, serving.Address, int]]:
    """`desk` on a free port of this machine, from a thread: who may come in, the address and the port."""
    from compressor.studio.app import studio_app

    address, access = serving.Address(port=0), Access()
    opened = serving.listening_socket(address)
    port = opened.getsockname()[1]
    server = serving.server(studio_app(desk, access, hosts=address.hosts(port)), address)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    thread.start()
    try:
        yield access, address, port
    finally:
        server.should_exit = True
        thread.join(10)


def long_picture(count: int) -> Picture:
    """A chain of so many convolutions, each of which reads the fifth before it as well."""
    operators = [
        Operator(
            kind="Conv",
            layer=f"net.{number}",
            module=f"net.{number}",
            weighted=True,
            ms=0.01,
            weight_bytes=64,
            macs=100,
            sources=tuple(sorted({max(0, number - 1), max(0, number - 5)} - {number})),
        )
        for number in range(count)
    ]
    return Picture(operators)
