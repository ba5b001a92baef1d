"""Serves the console's pages. They show what the index holds, and never touch Kafka.

Around NiceGUI, from the outside: compression, security headers, the guard.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from nicegui import ui
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope

from fulgurite.avro.codec import Codec
from services.console.pages.access.guard import ASSETS, HEALTH, SIGN_IN, Guard
from services.console.pages.access.headers import SecurityHeaders
from services.console.pages.access.sessions import Sessions
from services.console.pages.access.sign_in import SignIn
from services.console.pages.actions import Action
from services.console.pages.reading import Index
from services.console.pages.settings import PageSettings
from services.console.pages.shell import Shell
from services.console.pages.tokenizer import open_tokenizer
from services.console.pages.view import View
from services.console.pages.views import VIEWS

_FILES = Path(str(files("services.console.pages").joinpath("static")))

_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><path fill="#E69F00" '
    'd="M19 1 6 18h8l-3 13 15-19h-9z"/></svg>'
)


def create_app(
    index: Index,
    settings: PageSettings,
    codec: Codec,
    *,
    views: Sequence[View] = VIEWS,
    actions: Mapping[str, Action] | None = None,
) -> ASGIApp:
    """The console as an ASGI application. A process can have one, because NiceGUI is one."""
    sessions = Sessions(settings)
    sign_in = SignIn(sessions)
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        routes=[
            Route(HEALTH, _healthy),
            Route(SIGN_IN, sign_in.form, methods=["GET"]),
            Route(SIGN_IN, sign_in.enter, methods=["POST"]),
            Route(f"{SIGN_IN}/end", sign_in.leave, methods=["POST"]),
        ],
    )
    app.mount(ASSETS.rstrip("/"), Assets(directory=_FILES))
    tokenizer = open_tokenizer(settings.console_tokenizer)
    Shell(views, index, sessions, actions or {}, codec, tokenizer, _head()).install()
    cast(Any, ui).run_with(
        app,
        title="Fulgurite",
        favicon=_ICON,
        dark=None,
        language="en-US",
        tailwind=False,
        # Without a loop that looks for changed bindings: there are none.
        binding_refresh_interval=None,
        # Compression comes last, around everything.
        gzip_middleware_factory=None,
        show_welcome_message=False,
    )
    guarded = Guard(cast(ASGIApp, app), sessions, settings.hosts())
    return GZipMiddleware(SecurityHeaders(guarded), minimum_size=1024, compresslevel=5)


async def serve(app: ASGIApp, listening: socket.socket, stop: asyncio.Event) -> None:
    """Serve the application until `stop` is set."""
    server = _Server(
        uvicorn.Config(
            app,
            access_log=False,
            log_config=None,
            server_header=False,
            lifespan="on",
            timeout_graceful_shutdown=2,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        server.should_exit = True
        await serving


def listen(settings: PageSettings) -> socket.socket:
    """Listen at the console's address. Raises ConsoleAddressTaken."""
    host, port = settings.console_host, settings.console_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise ConsoleAddressTaken(
            f"The console cannot listen on {host}:{port}: {error.strerror}. Choose another "
            "FULGURITE_CONSOLE_PORT or FULGURITE_CONSOLE_HOST."
        ) from error


class Assets(StaticFiles):
    """The console's own files. With their digest in the address, as pages name them, browsers need
    not ask for them again.
    """

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The reply to a request for a file."""
        reply = await super().get_response(path, scope)
        if scope["query_string"]:
            reply.headers["cache-control"] = "public, max-age=31536000, immutable"
        return reply


class ConsoleAddressTaken(Exception):
    """The console's address cannot be listened on."""


class _Server(uvicorn.Server):
    """A server that leaves signals to the process."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def _head() -> str:
    """What stands in the head of every page. Addresses change with the content."""

    def address(name: str) -> str:
        digest = hashlib.sha256((_FILES / name).read_bytes()).hexdigest()[:12]
        return f"{ASSETS}{name}?{digest}"

    return (
        f'<link rel="stylesheet" href="{address("console.css")}">'
        f'<script src="{address("console.js")}"></script>'
    )


async def _healthy(_request: Request) -> Response:
    return PlainTextResponse("ok")
