"""Refuses requests before any page sees them.

A request must ask for a host name that is allowed; a web socket or a form must come from the
console's own pages; and where there is a read key, everything but the form that asks for it needs
a session.
"""

from __future__ import annotations

from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from services.console.pages.access.sessions import COOKIE, Session, Sessions

SESSION = "fulgurite.session"
"""Where the scope holds the request's session, or None."""
SIGN_IN = "/session"
HEALTH = "/healthz"
ASSETS = "/assets/"

_OPEN = (SIGN_IN, HEALTH)
_LIBRARIES = "/_nicegui/"
"""NiceGUI's own files: public code."""


class Guard:
    """Raw ASGI middleware."""

    def __init__(self, app: ASGIApp, sessions: Sessions, hosts: frozenset[str]) -> None:
        self.app = app
        self._sessions = sessions
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        session = self._sessions.get(_cookie(headers))
        scope[SESSION] = session
        refused = self._refused(scope, headers, session)
        if refused is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refused(scope, receive, send)

    def _refused(self, scope: Scope, headers: Headers, session: Session | None) -> Response | None:
        """The reply to a request that must not pass."""
        path: str = scope["path"]
        host = _host_name(headers.get("host", ""))
        if host not in self._hosts and path != HEALTH:
            return PlainTextResponse(
                f"The console does not answer for the host {host!r}. Add it to "
                "FULGURITE_CONSOLE_ALLOWED_HOSTS.",
                421,
            )
        is_socket = scope["type"] == "websocket"
        if (is_socket or scope["method"] not in ("GET", "HEAD")) and not _is_own(headers):
            return PlainTextResponse("This request does not come from a page of the console.", 403)
        if (
            path in _OPEN
            or path.startswith((ASSETS, _LIBRARIES))
            or self._sessions.may_read(session)
        ):
            return None
        if is_socket or scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("Enter the key first.", 401)
        query = scope["query_string"].decode("latin-1")
        wanted = path + (f"?{query}" if query else "")
        return RedirectResponse(f"{SIGN_IN}?next={quote(wanted, safe='')}", 303)


def session_of(scope: Mapping[str, object]) -> Session | None:
    """The session that the guard found for a request."""
    session = scope.get(SESSION)
    return session if isinstance(session, Session) else None


def _cookie(headers: Headers) -> str | None:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return found.value if found else None


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_own(headers: Headers) -> bool:
    """Whether a browser says that a request comes from a page of the same origin. Every browser
    sends Origin with web sockets and forms; programs without one have no cookies to abuse.
    """
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2].lower() == headers.get("host", "").lower()
