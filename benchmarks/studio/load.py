"""Many people at one studio on loopback: requests that were lost, how long the others took, and what each costs.

    python -m benchmarks.studio.load [--people 20] [--rate 10] [--seconds 60]

Each person has a draft and a session of one's own, listens to the events, and asks at a steady rate whatever was
answered before (an open loop, so that a slow answer delays no question) over as many connections as a browser has:
mostly what a choice would cost, as a slider on its way does, now and then an edit, a part of the page, the draft. An
answer's time is counted from the moment at which its question was due. An edit is lost where the draft has another
version in the end than it had edits that were answered. What the studio measures once in its life is measured before.
Then each kind of question is asked alone, one after the other: the processor's time that the server takes for it, and
for what it causes. Whoever asks takes processor's time as well, of the same machine: both are told.
"""

import argparse
import asyncio
import random
import re
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.stored import RESULTS
from benchmarks.studio.browser import Answer, Browser
from compressor.machine import environment
from compressor.storage import write_json
from compressor.target import Target
from workbench.studio import Studio

RESULT = RESULTS / "studio_load.json"
GOAL_MS = 200.0
_MOST_WAITS = 600
# Of ten questions: what a drag asks for, what is kept, and what a page shows anew.
TURNS = ("try", "try", "try", "try", "try", "edit", "draft", "plan", "drafts", "runs")
# Questions of a kind that are asked alone, by one person after the other: one session may ask so often and no more.
_ALONE = 200
# The server measures beside its pages no more where it takes less of a processor than this, for so many seconds.
_CALM, _CALM_SECONDS, _MOST_SECONDS = 0.05, 3.0, 1200.0


@dataclass(kw_only=True)
class Person:
    """Somebody at a browser: what that one knows of the draft, and what came of what it asked."""

    name: str
    browser: Browser
    draft: str = ""
    version: int = 0
    edits: int = 0
    stops: dict[str, list[int]] = field(default_factory=dict)
    taken: dict[str, list[float]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    editing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def enter(self, path: str) -> None:
        """Comes in by the link, and learns the draft and the widths that may be chosen."""
        await self.browser.get(path)
        page = (await self.browser.get("/")).text
        word = page.partition('data-csrf="')[2].partition('"')[0]
        self.browser.headers = {"Origin": self.browser.origin, "X-CSRF-Token": word}
        plan = ""
        for _ in range(_MOST_WAITS):
            plan = (await self.browser.get("/part/plan")).text
            if 'id="plan"' in plan:
                break
            await asyncio.sleep(0.5)
        found = re.findall(r'data-width="([^"]+)" data-stops="([^"]+)"', plan)
        self.stops = {name: list(map(int, stops.split())) for name, stops in found}
        draft = (await self.browser.get("/draft")).json()
        self.draft, self.version = draft["draft"], draft["version"]

    async def ask(self, turn: str, due: float, drawn: random.Random) -> None:
        """One question; what it took since it was due, or why it failed."""
        choice = {
            "widths": {name: drawn.choice(stops) for name, stops in self.stops.items() if drawn.random() < 0.3},
            "drop": [],
            "form": "float32",
            "epochs": 8,
        }
        try:
            if turn == "edit":
                # A page edits what it has seen: one edit of a person at a time.
                async with self.editing:
                    given = {"draft": self.draft, "version": self.version, "choice": choice}
                    answer = await self.browser.post("/edit", given)
                    if answer.status == 200:
                        self.edits += 1
                        self.version = answer.json()["version"]
            elif turn == "try":
                answer = await self.browser.post("/try", {"choice": choice})
            else:
                answer = await self._read(turn)
        except OSError as error:
            self.failed.append(f"{turn}: {type(error).__name__}")
            return
        if answer.status != 200:
            self.failed.append(f"{turn}: {answer.status} {answer.text.strip()[:80]}")
            return
        self.taken.setdefault(turn, []).append(1000 * (time.perf_counter() - due))

    async def _read(self, turn: str) -> Answer:
        return await self.browser.get("/draft" if turn == "draft" else f"/part/{turn}")


async def _asking(person: Person, rate: float, seconds: float) -> None:
    drawn = random.Random(person.name)  # noqa: S311 - choices, not secrets
    begun = time.perf_counter() + drawn.random() / rate
    tasks = []
    for number in range(round(rate * seconds)):
        due = begun + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(person.ask(TURNS[number % len(TURNS)], due, drawn)))
    await asyncio.gather(*tasks)


async def calm(studio: Studio) -> None:
    """Waits until the server measures nothing more beside its pages. Raises TimeoutError after twenty minutes."""
    end = time.monotonic() + _MOST_SECONDS
    spent = studio.cpu_seconds
    while time.monotonic() < end:
        await asyncio.sleep(_CALM_SECONDS)
        before, spent = spent, studio.cpu_seconds
        if spent - before < _CALM * _CALM_SECONDS:
            return
    raise TimeoutError(f"the studio measures for longer than {_MOST_SECONDS:.0f} s; run it again")


async def alone(studio: Studio, people: list[Person]) -> dict[str, float]:
    """The milliseconds of a processor that the server takes for a question of each kind, and for what it causes."""
    drawn, found = random.Random("alone"), {}  # noqa: S311 - choices, not secrets
    for turn in dict.fromkeys(TURNS):
        await calm(studio)
        before = studio.cpu_seconds
        for number in range(_ALONE):
            await people[number % len(people)].ask(turn, time.perf_counter(), drawn)
        await calm(studio)
        found[turn] = 1000 * (studio.cpu_seconds - before) / _ALONE
    return found


async def load(studio: Studio, people: list[str], rate: float, seconds: float) -> dict[str, Any]:
    """What `people` got who asked so often a second, for so long."""
    there = []
    for name in people:
        link = await asyncio.to_thread(studio.link, f"to edit, {name}")
        host, _, path = link.partition("://")[2].partition("/")
        address, _, port = host.partition(":")
        there.append(Person(name=name, browser=Browser(address, int(port))))
        await there[-1].enter(f"/{path}")
    listening = [asyncio.create_task(person.browser.listen("/events")) for person in there]
    # One slow walk before: what the latency table lacks is measured once in its life.
    await _asking(there[0], 2.0, 10.0)
    await calm(studio)
    for person in there:
        person.taken.clear()
        person.edits = 0
    before = [person.version for person in there]
    begun, server, client = time.perf_counter(), studio.cpu_seconds, time.process_time()
    await asyncio.gather(*(_asking(person, rate, seconds) for person in there))
    lasted, client, server = time.perf_counter() - begun, time.process_time() - client, studio.cpu_seconds - server
    kept = [(await person.browser.get("/draft")).json()["version"] for person in there]
    heard = [person.browser.heard for person in there]
    made = [person.edits for person in there]
    taken = sorted(value for person in there for values in person.taken.values() for value in values)
    by_question = {turn: _p95([value for person in there for value in person.taken.get(turn, [])]) for turn in TURNS}
    failed = sorted({words for person in there for words in person.failed})
    costs = await alone(studio, there)
    for task in listening:
        task.cancel()
    await asyncio.gather(*listening, return_exceptions=True)
    for person in there:
        person.browser.close()
    return {
        "people": len(there),
        "a_second_each": rate,
        "seconds": seconds,
        "asked": round(rate * seconds) * len(there),
        "answered": len(taken),
        "failed": failed,
        "lost_edits": sum(abs(then + mine - now) for now, then, mine in zip(kept, before, made, strict=True)),
        "events_heard": min(heard),
        "ms": {str(share): taken[min(len(taken) - 1, int(share / 100 * len(taken)))] for share in (50, 95, 99)},
        "ms_most": taken[-1],
        "p95_ms_by_question": by_question,
        "lasted_seconds": lasted,
        # Of all processors together; what is measured beside the pages is in it.
        "server_cpu_seconds": server,
        "client_cpu_seconds": client,
        "server_cpu_ms_alone": costs,
    }


def _p95(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))] if ordered else 0.0


def main() -> None:
    """Starts a studio on the digits, loads it, and stores what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workload", default="digits")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    where = environment(Target())
    people = [f"person-{number}" for number in range(options.people)]
    with tempfile.TemporaryDirectory() as folder:
        named = [word for name in people for word in ("--person", name)]
        studio = Studio(options.workload, Path(folder), *named)
        try:
            found = asyncio.run(load(studio, people, options.rate, options.seconds))
        finally:
            studio.end()
    row = {"workload": options.workload, **found, "goal_ms": GOAL_MS, "environment": where}
    write_json(options.result, row)
    print(
        f"{found['answered']} of {found['asked']} answered, {found['lost_edits']} edits lost; "
        f"median {found['ms']['50']:.0f} ms, 95 % within {found['ms']['95']:.0f} ms, "
        f"all within {found['ms_most']:.0f} ms; processor seconds: server {found['server_cpu_seconds']:.1f}, "
        f"client {found['client_cpu_seconds']:.1f}, of {found['lasted_seconds']:.1f}"
    )
    for turn, ms in found["server_cpu_ms_alone"].items():
        print(f"{turn} alone: {ms:.2f} ms of the server's processor")
    for words in found["failed"]:
        print(f"failed: {words}")


if __name__ == "__main__":
    main()
