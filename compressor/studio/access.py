"""Who may look and who may change: tokens that are good once, the sessions they become, and how often one may ask."""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

# A session ends so long after its last request.
SESSION_SECONDS = 12 * 3600.0
# More sessions than people have tabs: the one used longest ago goes.
_MOST_SESSIONS = 64
# Wrong tokens that cost nothing; each further one doubles the wait, up to a minute.
_FREE_TRIES = 5
_LONGEST_WAIT = 60.0
# So many requests a second one session is served for long, and so many at once after a rest.
REQUESTS_A_SECOND, _REQUESTS_AT_ONCE = 50.0, 200.0
# Streams of events that one session may hold open: a browser allows itself six connections.
MOST_STREAMS = 6
# Longer than any token or cookie of ours; more is not compared.
_LONGEST = 200


class Role(StrEnum):
    """What a session may do: an editor changes drafts and runs them, a viewer looks."""

    EDITOR = "editor"
    VIEWER = "viewer"


@dataclass(frozen=True, kw_only=True)
class Session:
    """One browser that came in: its cookie, its role, and the word that whatever changes something has to bring.

    `person` is whose drafts an editor has, without a name where nobody was named.
    """

    cookie: str
    role: Role
    csrf: str
    person: str = ""

    @property
    def name(self) -> str:
        """What it is called where its cookie must not stand."""
        return hashlib.sha256(self.cookie.encode()).hexdigest()[:16]

    def brings(self, csrf: str | None) -> bool:
        """Whether `csrf` is this session's word."""
        return _same(csrf, self.csrf)


class TooManyTriesError(Exception):
    """Wrong tokens came too fast; `seconds` is how long every token is refused."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many wrong tokens; wait {seconds:.0f} s")
        self.seconds = seconds


class TooOftenError(Exception):
    """A session asks for more than a page does."""


@dataclass(kw_only=True)
class _Open:
    """A session that has not ended: when it was last used, what it may still ask for, and its streams."""

    session: Session
    used: float
    allowance: float = _REQUESTS_AT_ONCE
    streams: int = 0


class Access:
    """The tokens of those who edit, of those who watch, and the sessions that came of them.

    A token is good for one exchange, then the next one takes its place: what stays behind in a history, a log or a
    Referer opens nothing. `people` are those who edit. `clock` gives seconds.
    """

    def __init__(self, people: Sequence[str] = ("",), *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.keys = (*((Role.EDITOR, person) for person in people), (Role.VIEWER, ""))
        self._tokens = {key: _random() for key in self.keys}
        self._sessions: dict[str, _Open] = {}
        self._wrong, self._refused_until = 0, 0.0

    def token(self, role: Role, person: str = "") -> str:
        """The token that is good for one session of `role`, and of `person` if it edits."""
        return self._tokens[role, person]

    def enter(self, token: str | None) -> Session | None:
        """A new session for `token`, which is spent then; None for any other. Raises TooManyTriesError."""
        now = self._clock()
        if now < self._refused_until:
            raise TooManyTriesError(self._refused_until - now)
        # Every one is compared, so that the time tells nothing.
        found = [key for key in self.keys if _same(token, self._tokens[key])]
        if not found:
            self._wrong += 1
            if self._wrong > _FREE_TRIES:
                self._refused_until = now + min(_LONGEST_WAIT, 2.0 ** (self._wrong - _FREE_TRIES))
            return None
        self._wrong = 0
        role, person = found[0]
        self._tokens[role, person] = _random()
        session = Session(cookie=_random(), role=role, csrf=_random(), person=person)
        self._sessions[session.cookie] = _Open(session=session, used=now)
        while len(self._sessions) > _MOST_SESSIONS:
            del self._sessions[min(self._sessions, key=lambda cookie: self._sessions[cookie].used)]
        return session

    def session(self, cookie: str | None) -> Session | None:
        """The session of `cookie`, which is used with that; None where there is none or it has ended.

        Raises TooOftenError.
        """
        found = self._open(cookie)
        if found is None:
            return None
        now = self._clock()
        found.allowance = min(_REQUESTS_AT_ONCE, found.allowance + REQUESTS_A_SECOND * (now - found.used))
        found.used = now
        if found.allowance < 1:
            raise TooOftenError
        found.allowance -= 1
        return found.session

    def lives(self, session: Session) -> bool:
        """Whether `session` has not ended; that it is asked for is no use of it."""
        return self._open(session.cookie) is not None

    def may_stream(self, session: Session) -> bool:
        """Whether `session` may open one more stream of events."""
        found = self._open(session.cookie)
        return found is not None and found.streams < MOST_STREAMS

    @contextmanager
    def streaming(self, session: Session) -> Iterator[None]:
        """Counts one more stream of `session` until the block ends."""
        found = self._open(session.cookie) or _Open(session=session, used=0.0)
        found.streams += 1
        try:
            yield
        finally:
            found.streams -= 1

    def leave(self, session: Session) -> None:
        """Ends `session`."""
        self._sessions.pop(session.cookie, None)

    def _open(self, cookie: str | None) -> _Open | None:
        if cookie is None or len(cookie) > _LONGEST or cookie not in self._sessions:
            return None
        if self._clock() - self._sessions[cookie].used > SESSION_SECONDS:
            del self._sessions[cookie]
            return None
        return self._sessions[cookie]


def _random() -> str:
    return secrets.token_urlsafe(32)


def _same(given: str | None, wanted: str) -> bool:
    return given is not None and len(given) <= _LONGEST and hmac.compare_digest(given.encode(), wanted.encode())
