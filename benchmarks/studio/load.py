"""Many people at one studio on loopback: requests that were lost, and how long the others took.

    python -m benchmarks.studio.load [--people 20] [--rate 10] [--seconds 60]

Each person has a draft and a session of one's own, listens to the events, and asks at a steady rate whatever was
answered before (an open loop, so that a slow answer delays no question): mostly what a choice would cost, as a slider
on its way does, now and then an edit, a part of the page, the draft. An answer's time is counted from the moment at
which its question was due. An edit is lost where the draft has another version in the end than it had edits that were
answered.
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

import httpx

from benchmarks.stored import RESULTS
from compressor.machine import environment
from compressor.storage import write_json
from compressor.target import Target
from workbench.studio import Studio

RESULT = RESULTS / "studio_load.json"
GOAL_MS = 200.0
_MOST_WAITS = 600
# Of ten questions: what a drag asks for, what is kept, and what a page shows anew.
TURNS = ("try", "try", "try", "try", "try", "edit", "draft", "plan", "drafts", "runs")


@dataclass(kw_only=True)
class Person:
    """One browser: its requests, what it knows of its draft, and what came of what it asked."""

    name: str
    client: httpx.AsyncClient
    headers: dict[str, str] = field(default_factory=dict)
    draft: str = ""
    version: int = 0
    edits: int = 0
    stops: dict[str, list[int]] = field(default_factory=dict)
    taken: dict[str, list[float]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    heard: int = 0
    editing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def enter(self, link: str) -> None:
        """Comes in by the link, and learns the draft and the widths that may be chosen."""
        origin = link.partition("/enter")[0]
        page = await self.client.get(link, follow_redirects=True)
        word = page.text.partition('data-csrf="')[2].partition('"')[0]
        self.headers = {"origin": origin, "x-csrf-token": word}
        self.client.base_url = httpx.URL(origin)
        plan = ""
        for _ in range(_MOST_WAITS):
            plan = (await self.client.get("/part/plan")).text
            if 'id="plan"' in plan:
                break
            await asyncio.sleep(0.5)
        found = re.findall(r'data-width="([^"]+)" data-stops="([^"]+)"', plan)
        self.stops = {name: list(map(int, stops.split())) for name, stops in found}
        draft = (await self.client.get("/draft")).json()
        self.draft, self.version = draft["draft"], draft["version"]

    async def listen(self) -> None:
        """Counts the events that come, until it is stopped."""
        async with self.client.stream("GET", "/events", timeout=None) as stream:
            async for line in stream.aiter_lines():
                self.heard += line.startswith("event:")

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
                    answer = await self.client.post("/edit", json=given, headers=self.headers)
                    if answer.is_success:
                        self.edits += 1
                        self.version = answer.json()["version"]
            elif turn == "try":
                answer = await self.client.post("/try", json={"choice": choice}, headers=self.headers)
            elif turn == "draft":
                answer = await self.client.get("/draft")
            else:
                answer = await self.client.get(f"/part/{turn}")
        except httpx.HTTPError as error:
            self.failed.append(f"{turn}: {type(error).__name__}")
            return
        if not answer.is_success:
            self.failed.append(f"{turn}: {answer.status_code} {answer.text.strip()[:80]}")
            return
        self.taken.setdefault(turn, []).append(1000 * (time.perf_counter() - due))


async def _asking(person: Person, rate: float, seconds: float) -> None:
    drawn = random.Random(person.name)  # noqa: S311 - choices, not secrets
    begun = time.perf_counter() + drawn.random() / rate
    tasks = []
    for number in range(round(rate * seconds)):
        due = begun + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(person.ask(TURNS[number % len(TURNS)], due, drawn)))
    await asyncio.gather(*tasks)


async def load(studio: Studio, people: list[str], rate: float, seconds: float) -> dict[str, Any]:
    """What `people` got who asked so often a second, for so long."""
    there = [Person(name=name, client=httpx.AsyncClient(timeout=60)) for name in people]
    for person in there:
        await person.enter(await asyncio.to_thread(studio.link, f"to edit, {person.name}"))
    listening = [asyncio.create_task(person.listen()) for person in there]
    # One slow walk before: what the latency table lacks is measured once in its life.
    await _asking(there[0], 2.0, 10.0)
    for person in there:
        person.taken.clear()
        person.edits = 0
    before = [person.version for person in there]
    await asyncio.gather(*(_asking(person, rate, seconds) for person in there))
    kept = [(await person.client.get("/draft")).json()["version"] for person in there]
    for task in listening:
        task.cancel()
    await asyncio.gather(*listening, return_exceptions=True)
    for person in there:
        await person.client.aclose()
    made = [person.edits for person in there]
    taken = sorted(value for person in there for values in person.taken.values() for value in values)
    return {
        "people": len(there),
        "a_second_each": rate,
        "seconds": seconds,
        "asked": round(rate * seconds) * len(there),
        "answered": len(taken),
        "failed": sorted({words for person in there for words in person.failed}),
        "lost_edits": sum(abs(then + mine - now) for now, then, mine in zip(kept, before, made, strict=True)),
        "events_heard": min(person.heard for person in there),
        "ms": {str(share): taken[min(len(taken) - 1, int(share / 100 * len(taken)))] for share in (50, 95, 99)},
        "ms_most": taken[-1],
        "p95_ms_by_question": {
            turn: _p95([value for person in there for value in person.taken.get(turn, [])]) for turn in set(TURNS)
        },
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
        f"all within {found['ms_most']:.0f} ms"
    )
    for words in found["failed"]:
        print(f"failed: {words}")


if __name__ == "__main__":
    main()
