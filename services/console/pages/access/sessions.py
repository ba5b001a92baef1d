"""Sessions of people who have entered a key. They are kept in memory: a restart ends them."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from services.console.pages.settings import PageSettings

COOKIE = "fulgurite_console"

Role = Literal["none", "reader", "admin"]

_MOST = 1000
"""Sessions that are kept; the oldest go first."""


@dataclass(frozen=True)
class Session:
    """What a browser may do. `form_token` is in every form of the session, so that no other site
    can send one in its name.
    """

    id: str
    form_token: str
    role: Role
    expires: float


class Sessions:
    """Sessions by the random id in their cookie. `clock` gives seconds."""

    def __init__(self, settings: PageSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._read_key = settings.console_read_key
        self._admin_key = settings.admin_key
        self._seconds = settings.console_session_hours * 3600
        self._clock = clock
        self._sessions: dict[str, Session] = {}

    @property
    def needs_key(self) -> bool:
        """Whether reading needs a key."""
        return self._read_key is not None

    @property
    def has_admin(self) -> bool:
        """Whether there is a key for actions."""
        return self._admin_key is not None

    def role_of(self, key: str) -> Role:
        """What a key allows. Both keys are compared, in constant time."""
        is_admin = self._admin_key is not None and _same(key, self._admin_key.get_secret_value())
        is_reader = self._read_key is not None and _same(key, self._read_key.get_secret_value())
        return "admin" if is_admin else "reader" if is_reader else "none"

    def begin(self, role: Role) -> Session:
        """A new session."""
        if len(self._sessions) >= _MOST:
            # Those who were only asked for a key go first.
            asked = (one.id for one in self._sessions.values() if one.role == "none")
            del self._sessions[next(asked, next(iter(self._sessions)))]
        session = Session(
            secrets.token_urlsafe(32),
            secrets.token_urlsafe(32),
            role,
            self._clock() + self._seconds,
        )
        self._sessions[session.id] = session
        return session

    def get(self, session_id: str | None) -> Session | None:
        """The session with an id, if it has not ended."""
        session = self._sessions.get(session_id or "")
        if session is not None and session.expires <= self._clock():
            del self._sessions[session.id]
            return None
        return session

    def end(self, session: Session) -> None:
        """End a session."""
        self._sessions.pop(session.id, None)

    def may_read(self, session: Session | None) -> bool:
        """Whether the pages are open to a session, or to nobody's."""
        return not self.needs_key or (session is not None and session.role != "none")

    def may_act(self, session_id: str | None) -> bool:
        """Whether a session may act."""
        session = self.get(session_id)
        return session is not None and session.role == "admin"


def same_token(session: Session, token: str) -> bool:
    """Whether a form was made for this session."""
    return _same(token, session.form_token)


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())
