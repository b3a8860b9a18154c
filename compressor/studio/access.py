"""Who may look and who may change: tokens that are good once, the sessions they become, and how often one may guess."""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

# A session ends so long after its last request.
SESSION_SECONDS = 12 * 3600.0
# More sessions than people have tabs: the one used longest ago goes.
_MOST_SESSIONS = 64
# Wrong tokens that cost nothing; each further one doubles the wait, up to a minute.
_FREE_TRIES = 5
_LONGEST_WAIT = 60.0
# Longer than any token or cookie of ours; more is not compared.
_LONGEST = 200


class Role(StrEnum):
    """What a session may do: an editor changes drafts and runs them, a viewer looks."""

    EDITOR = "editor"
    VIEWER = "viewer"


@dataclass(frozen=True, kw_only=True)
class Session:
    """One browser that came in: its cookie, its role, and the word that whatever changes something has to bring."""

    cookie: str
    role: Role
    csrf: str

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


@dataclass(kw_only=True)
class Access:
    """The tokens of the two roles, and the sessions that came of them.

    A token is good for one exchange, then the next one takes its place: what stays behind in a history, a log or a
    Referer opens nothing. `clock` gives seconds.
    """

    clock: Callable[[], float] = time.monotonic
    _tokens: dict[Role, str] = field(default_factory=lambda: {role: _random() for role in Role})
    _sessions: dict[str, tuple[Session, float]] = field(default_factory=dict)
    _wrong: int = 0
    _refused_until: float = 0.0

    def token(self, role: Role) -> str:
        """The token that is good for one session of `role`."""
        return self._tokens[role]

    def enter(self, token: str | None) -> Session | None:
        """A new session for `token`, which is spent then; None for any other. Raises TooManyTriesError."""
        now = self.clock()
        if now < self._refused_until:
            raise TooManyTriesError(self._refused_until - now)
        # Every role is compared, so that the time tells nothing.
        found = [role for role in Role if _same(token, self._tokens[role])]
        if not found:
            self._wrong += 1
            if self._wrong > _FREE_TRIES:
                self._refused_until = now + min(_LONGEST_WAIT, 2.0 ** (self._wrong - _FREE_TRIES))
            return None
        self._wrong = 0
        self._tokens[found[0]] = _random()
        session = Session(cookie=_random(), role=found[0], csrf=_random())
        self._sessions[session.cookie] = session, now
        while len(self._sessions) > _MOST_SESSIONS:
            del self._sessions[min(self._sessions, key=lambda cookie: self._sessions[cookie][1])]
        return session

    def session(self, cookie: str | None) -> Session | None:
        """The session of `cookie`, None where there is none or it has ended."""
        if cookie is None or len(cookie) > _LONGEST or cookie not in self._sessions:
            return None
        session, used = self._sessions[cookie]
        now = self.clock()
        if now - used > SESSION_SECONDS:
            del self._sessions[cookie]
            return None
        self._sessions[cookie] = session, now
        return session

    def leave(self, session: Session) -> None:
        """Ends `session`."""
        self._sessions.pop(session.cookie, None)


def _random() -> str:
    return secrets.token_urlsafe(32)


def _same(given: str | None, wanted: str) -> bool:
    return given is not None and len(given) <= _LONGEST and hmac.compare_digest(given.encode(), wanted.encode())
