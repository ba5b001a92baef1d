"""Who gets in: keys, sessions, origins, hosts and headers."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from pydantic import SecretStr, ValidationError
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from services.console.pages.access.guard import SIGN_IN, Guard
from services.console.pages.access.headers import SecurityHeaders
from services.console.pages.access.sessions import COOKIE, Sessions
from services.console.pages.access.sign_in import SignIn, local_address
from services.console.pages.access.wrong_keys import MOST, WINDOW_S, WrongKeys, client_of
from services.console.pages.settings import PageSettings

READ, ADMIN = "read-key-of-the-team", "admin-key-of-one"
ORIGIN = {"origin": "http://localhost"}
SOCKET = "ws://localhost/_nicegui_ws/"


def settings(read: str | None = READ) -> PageSettings:
    return PageSettings(
        console_read_key=SecretStr(read) if read else None, admin_key=SecretStr(ADMIN)
    )


def client(sessions: Sessions, wrong_keys: WrongKeys | None = None) -> TestClient:
    sign_in = SignIn(sessions, wrong_keys)

    async def page(_request: object) -> Response:
        return HTMLResponse("<script>1</script><p>&lt;script></p>")

    app = FastAPI(
        routes=[
            Route("/", page),
            Route(SIGN_IN, sign_in.form, methods=["GET"]),
            Route(SIGN_IN, sign_in.enter, methods=["POST"]),
            Route(f"{SIGN_IN}/end", sign_in.leave, methods=["POST"]),
        ]
    )

    @app.websocket("/_nicegui_ws/")
    async def socket(connection: WebSocket) -> None:  # pyright: ignore[reportUnusedFunction]
        await connection.accept()
        await connection.close()

    guarded = Guard(app, sessions, settings().hosts())
    return TestClient(SecurityHeaders(guarded), base_url="http://localhost", follow_redirects=False)


def token_of(text: str) -> str:
    match = re.search(r'name="token" value="([^"]+)"', text)
    assert match
    return match[1]


def enter(browser: TestClient, key: str, next_page: str = "/") -> Any:
    form = browser.get(SIGN_IN, params={"next": next_page})
    fields = {"key": key, "token": token_of(form.text), "next": next_page}
    return browser.post(SIGN_IN, data=fields, headers=ORIGIN)


def test_without_a_read_key_everybody_reads_and_nobody_acts() -> None:
    sessions = Sessions(settings(None))
    assert client(sessions).get("/").status_code == 200
    assert not sessions.may_act(None)


def test_with_a_read_key_a_page_asks_for_it_and_comes_back() -> None:
    browser = client(Sessions(settings()))
    asked = browser.get("/", params={"run": "a"})
    assert (asked.status_code, asked.headers["location"]) == (303, "/session?next=%2F%3Frun%3Da")
    assert enter(browser, "wrong").status_code == 403
    entered = enter(browser, READ, "/?run=a")
    assert entered.headers["location"] == "/?run=a"
    assert browser.get("/").status_code == 200


def test_an_address_that_enters_many_wrong_keys_must_wait() -> None:
    now = [100.0]
    wrong_keys, sessions = WrongKeys(lambda: now[0]), Sessions(settings())
    browser = client(sessions, wrong_keys)
    for _ in range(MOST):
        assert enter(browser, "wrong").status_code == 403
    refused = enter(browser, ADMIN)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, str(int(WINDOW_S)))
    assert f"{MOST} wrong keys came from your address. Try again in 10 minutes." in refused.text
    assert not sessions.may_act(browser.cookies[COOKIE])
    assert wrong_keys.wait_s("192.0.2.7") == 0, "others may enter theirs"
    now[0] += WINDOW_S
    assert enter(browser, ADMIN).status_code == 303
    assert enter(browser, "wrong").status_code == 403, "a right key begins anew"


def test_wrong_keys_are_counted_for_a_client_and_few_are_remembered() -> None:
    assert client_of("2001:db8:0:1::1") == client_of("2001:db8:0:1:ffff::2")
    assert client_of("2001:db8:0:1::1") != client_of("2001:db8:0:2::1")
    assert client_of("192.0.2.1") != client_of("192.0.2.2")
    assert client_of("testclient") == "testclient"
    wrong_keys = WrongKeys(lambda: 0.0)
    for _ in range(MOST):
        wrong_keys.add("192.0.2.1")
    for number in range(9_999):
        wrong_keys.add(f"client {number}")
    assert wrong_keys.wait_s("192.0.2.1") == WINDOW_S
    wrong_keys.add("one more")
    assert wrong_keys.wait_s("192.0.2.1") == 0


def test_the_read_key_does_not_allow_actions_and_the_admin_key_does() -> None:
    sessions = Sessions(settings())
    browser = client(sessions)
    enter(browser, READ)
    assert not sessions.may_act(browser.cookies[COOKIE])
    before = browser.cookies[COOKIE]
    enter(browser, ADMIN)
    assert sessions.may_act(browser.cookies[COOKIE])
    assert browser.cookies[COOKIE] != before


def test_the_cookie_is_kept_from_scripts_and_other_sites() -> None:
    cookie = client(Sessions(settings())).get(SIGN_IN).headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie


def test_a_session_ends_after_its_hours_and_when_somebody_leaves() -> None:
    now = [0.0]
    sessions = Sessions(settings(), lambda: now[0])
    session = sessions.begin("admin")
    assert sessions.may_act(session.id)
    now[0] = settings().console_session_hours * 3600
    assert not sessions.may_act(session.id)
    browser = client(sessions)
    enter(browser, READ)
    token = sessions.get(browser.cookies[COOKIE])
    assert token
    gone = browser.post(f"{SIGN_IN}/end", data={"token": token.form_token}, headers=ORIGIN)
    assert gone.status_code == 303
    assert browser.get("/").status_code == 303


def test_visitors_do_not_end_the_sessions_of_others() -> None:
    sessions = Sessions(settings())
    admin = sessions.begin("admin")
    for _ in range(2000):
        sessions.begin("none")
    assert sessions.may_act(admin.id)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://elsewhere"},
        {"origin": "null"},
        {"origin": "http://localhost:81"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "http://localhost"},
    ],
)
def test_forms_and_sockets_of_other_sites_are_refused(headers: dict[str, str]) -> None:
    browser = client(Sessions(settings(None)))
    assert browser.post(SIGN_IN, headers=headers).status_code == 403
    with (
        pytest.raises(WebSocketDisconnect),
        browser.websocket_connect(SOCKET, headers=headers),
    ):
        pass


def test_a_form_without_the_sessions_token_does_nothing() -> None:
    browser = client(Sessions(settings()))
    browser.get(SIGN_IN)
    browser.post(SIGN_IN, data={"key": ADMIN, "token": "guessed"}, headers=ORIGIN)
    assert browser.get("/").status_code == 303


def test_a_socket_needs_the_read_key() -> None:
    browser = client(Sessions(settings()))
    with pytest.raises(WebSocketDisconnect), browser.websocket_connect(SOCKET):
        pass
    enter(browser, READ)
    with browser.websocket_connect(SOCKET, headers=ORIGIN):
        pass


def test_other_host_names_are_refused() -> None:
    reply = client(Sessions(settings(None))).get("/", headers={"host": "rebound.example:8090"})
    assert reply.status_code == 421
    assert "FULGURITE_CONSOLE_ALLOWED_HOSTS" in reply.text


def test_every_reply_has_security_headers_and_scripts_a_nonce() -> None:
    reply = client(Sessions(settings(None))).get("/")
    policy = reply.headers["content-security-policy"]
    nonce = re.search(r"'nonce-([^']+)'", policy)
    assert nonce
    assert reply.text == f'<script nonce="{nonce[1]}">1</script><p>&lt;script></p>'
    scripts = next(part for part in policy.split("; ") if part.startswith("script-src"))
    assert "unsafe-inline" not in scripts
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "address", [None, "", "https://elsewhere", "//elsewhere", "/\\elsewhere", "runs", "/a\r\nb"]
)
def test_entering_a_key_leads_nowhere_else(address: str | None) -> None:
    assert local_address(address) == "/"


def test_no_key_is_in_a_page() -> None:
    browser = client(Sessions(settings()))
    pages = [browser.get(SIGN_IN).text, str(enter(browser, ADMIN).headers), browser.get("/").text]
    assert not any(key in page for key in (READ, ADMIN) for page in pages)


def test_a_console_beyond_this_machine_needs_a_read_key() -> None:
    with pytest.raises(ValidationError, match="FULGURITE_CONSOLE_READ_KEY"):
        PageSettings(console_host="0.0.0.0")
    assert PageSettings(console_host="0.0.0.0", console_open=True)
    assert PageSettings(console_host="0.0.0.0", console_read_key=SecretStr(READ))
    assert PageSettings(console_host="0.0.0.0", console_published="127.0.0.1"), "in a container"
    with pytest.raises(ValidationError, match=r"At 0\.0\.0\.0"):
        PageSettings(console_host="0.0.0.0", console_published="0.0.0.0")
