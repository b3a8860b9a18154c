"""One run of the studio in a process of its own: what `compressor run` does, with its events as JSON lines on stdout.

`python -m compressor.studio.worker recipe.yaml workload folder`. It ends, in order, when its standard input does: with
the server that started it. What anybody's code prints goes to standard error, which the server keeps.
"""

import json
import os
import signal
import sys
import threading
from dataclasses import asdict
from types import FrameType
from typing import TextIO

from compressor.errors import CompressorError
from compressor.progress.events import Event
from compressor.recipe.recipe import Recipe
from compressor.running.pipeline import Pipeline
from compressor.running.session import Session
from compressor.storage import json_safe
from compressor.store.place import users_store
from compressor.workloads import load

# What the server reads, once it is set apart from what others print.
_events: list[TextIO] = []


def main(recipe: str, workload: str, out: str) -> int:
    """Runs `recipe` on `workload` into the folder `out`; 0 where it is done, 1 where it failed, 143 where stopped."""
    _events.append(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server's Ctrl-C is the server's
    threading.Thread(target=_end_with_server, daemon=True).start()
    try:
        plan = Recipe.load(recipe)
        Pipeline.from_recipe(plan).run(
            load(workload),
            target=plan.target(),
            out=out,
            seed=plan.seed,
            progress=False,
            on_event=_tell,
            session=Session(store=users_store()),
        )
    except KeyboardInterrupt:
        return 143
    except (CompressorError, ValueError, OSError) as error:
        _say("Failed", {"reason": str(error)})
        return 1
    return 0


def _tell(event: Event) -> None:
    _say(type(event).__name__, asdict(event))


def _say(kind: str, data: dict[str, object]) -> None:
    events = _events[0] if _events else sys.stdout
    events.write(json.dumps({"kind": kind, **json_safe(data)}) + "\n")
    events.flush()


def _stop(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


def _end_with_server() -> None:
    # Of the file itself: a thread that holds Python's stdin would break the end of the process.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
