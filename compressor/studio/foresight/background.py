"""Work that is done beside the page in small steps, the most wanted first, one step at a time."""

import math
import threading
import time
from collections.abc import Callable, Sequence

_PATIENCE_SECONDS = 2.0
# Where so many questions a second are answered, a step is followed by a rest as long as itself; by a longer one where
# there are more, and by hardly any beside the few of one page.
_EVEN_QUESTIONS = 50.0
_LONGEST_REST_SECONDS = 0.5

# Does one step of its work; False where nothing is left to do for now.
Job = Callable[[], bool]


class Background:
    """A thread that does one step of the first of `jobs` that has something to do, over and over.

    One at a time, so that nothing is timed while something else computes. A job that raises is left out from then on,
    and `failed` is told of it. The more is `asked` meanwhile the longer it rests between its steps: people go first.
    """

    def __init__(self, jobs: Sequence[Job], failed: Callable[[Exception], object]) -> None:
        self._jobs, self._failed = list(jobs), failed
        self._wanted, self._idle = threading.Event(), threading.Event()
        self._turn, self._over = threading.Lock(), threading.Event()
        self._asked, self._questions = 0.0, 0.0
        self._thread = threading.Thread(target=self._work, name="measuring beside the page", daemon=True)

    def start(self) -> None:
        """Begins; once."""
        self._wanted.set()
        self._thread.start()

    def wake(self) -> None:
        """Says that a job may have something to do again."""
        with self._turn:
            self._idle.clear()
            self._wanted.set()

    def asked(self) -> None:
        """Says that somebody waits for an answer of the page."""
        now = time.monotonic()
        self._questions = 1 + self._questions * math.exp(self._asked - now)
        self._asked = now

    def settle(self, seconds: float) -> bool:
        """Waits until nothing is left to do, for so long at most; whether it is so."""
        return self._idle.wait(seconds)

    def end(self) -> None:
        """Ends behind the step at hand, which is waited for a little: most steps are short."""
        self._over.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE_SECONDS)

    def _work(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            begun = time.monotonic()
            while not self._over.is_set() and self._step():
                self._over.wait(self._rest(time.monotonic() - begun))
                begun = time.monotonic()
            if self._over.is_set():
                return
            with self._turn:
                if not self._wanted.is_set():
                    self._idle.set()

    def _rest(self, spent: float) -> float:
        """The seconds of rest behind a step that took so many."""
        a_second = self._questions * math.exp(self._asked - time.monotonic())
        return min(_LONGEST_REST_SECONDS, spent * a_second / _EVEN_QUESTIONS)

    def _step(self) -> bool:
        for job in [*self._jobs]:
            try:
                if job():
                    return True
            except Exception as error:  # noqa: BLE001 - a user's model and metric raise anything, and the page says what
                self._jobs.remove(job)
                self._failed(error)
        return False
