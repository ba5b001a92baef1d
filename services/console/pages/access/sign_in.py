"""The form that asks for a key: plain HTML, without scripts."""

from __future__ import annotations

import html
import math
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from services.console.pages.access.guard import SIGN_IN, session_of
from services.console.pages.access.sessions import COOKIE, Session, Sessions, same_token
from services.console.pages.access.wrong_keys import MOST, WrongKeys
from services.console.pages.formats import count

_MOST_BYTES = 8192
"""Of a form: a key, a token and an address."""

_PAGE = """<!doctype html>
<html lang="en"><head><title>Fulgurite: enter a key</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="/assets/console.css"></head>
<body class="sign-in"><main><h1>Fulgurite</h1>
<form method="post" action="{action}"><p>{text}</p>{error}
<input type="hidden" name="token" value="{token}"><input type="hidden" name="next" value="{next}">
<label>Key <input type="password" name="key" autocomplete="current-password" required autofocus>
</label><button type="submit">Continue</button></form></main></body></html>"""


class SignIn:
    """Begins and ends sessions."""

    def __init__(self, sessions: Sessions, wrong_keys: WrongKeys | None = None) -> None:
        self._sessions = sessions
        self._wrong_keys = wrong_keys or WrongKeys()

    async def form(self, request: Request) -> Response:
        """Ask for a key."""
        session = session_of(request.scope) or self._sessions.begin("none")
        reply = self._page(session, local_address(request.query_params.get("next")))
        _set_cookie(reply, session, request)
        return reply

    async def enter(self, request: Request) -> Response:
        """Begin a session with what the key allows. The session has a new id. An address that has
        entered too many wrong keys must wait, whatever its next one is.
        """
        fields = await _fields(request)
        session = session_of(request.scope)
        next_page = local_address(fields.get("next"))
        if session is None or not same_token(session, fields.get("token", "")):
            return RedirectResponse(SIGN_IN, 303)
        address = request.client.host if request.client is not None else ""
        wait_s = self._wrong_keys.wait_s(address)
        if wait_s:
            reply = self._page(session, next_page, too_many(wait_s), 429)
            reply.headers["retry-after"] = str(math.ceil(wait_s))
            return reply
        role = self._sessions.role_of(fields.get("key", ""))
        if role == "none":
            self._wrong_keys.add(address)
            return self._page(session, next_page, "This key is not known.", 403)
        self._wrong_keys.forget(address)
        self._sessions.end(session)
        reply = RedirectResponse(next_page, 303)
        _set_cookie(reply, self._sessions.begin(role), request)
        return reply

    async def leave(self, request: Request) -> Response:
        """End the session."""
        session = session_of(request.scope)
        if session and same_token(session, (await _fields(request)).get("token", "")):
            self._sessions.end(session)
        reply = RedirectResponse("/", 303)
        reply.delete_cookie(COOKIE)
        return reply

    def _page(
        self, session: Session, next_page: str, error: str = "", status: int = 200
    ) -> HTMLResponse:
        wanted = "the read key or the admin key" if self._sessions.needs_key else "the admin key"
        return HTMLResponse(
            _PAGE.format(
                action=SIGN_IN,
                text=f"Enter {wanted}. Actions need the admin key.",
                error=f'<p class="bad" role="alert">{html.escape(error)}</p>' if error else "",
                token=html.escape(session.form_token),
                next=html.escape(next_page),
            ),
            status,
        )


def too_many(wait_s: float) -> str:
    """Says how long to wait."""
    return (
        f"{MOST} wrong keys came from your address. Try again in "
        f"{count(math.ceil(wait_s / 60), 'minute')}."
    )


def local_address(address: str | None) -> str:
    """An address if it is a page of the console, otherwise its first page."""
    is_local = (
        address is not None
        and address.startswith("/")
        and not address.startswith(("//", "/\\"))
        and address.isprintable()
    )
    return address if address is not None and is_local else "/"


def _set_cookie(reply: Response, session: Session, request: Request) -> None:
    reply.set_cookie(
        COOKIE, session.id, httponly=True, samesite="lax", secure=request.url.scheme == "https"
    )


async def _fields(request: Request) -> dict[str, str]:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BYTES:
            return {}
    return {name: values[0] for name, values in parse_qs(body.decode(errors="replace")).items()}
