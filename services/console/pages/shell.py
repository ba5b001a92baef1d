"""The page around a view: navigation, title, the view's blocks, and their refreshing.

A page is drawn from its address once, and again whenever the index has grown. All it keeps is what
it has drawn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import groupby
from typing import Any, cast

from nicegui import ui
from nicegui.client import Client
from nicegui.element import Element
from starlette.requests import Request

from fulgurite.avro.codec import Codec
from services.common.runtime import logs
from services.common.runtime.clock import now_ms
from services.console.pages.access.guard import SIGN_IN, session_of
from services.console.pages.access.sessions import Session, Sessions
from services.console.pages.actions import Action, Actions
from services.console.pages.address import Address, link
from services.console.pages.blocks import Block, Link, Notice
from services.console.pages.changes import Changes
from services.console.pages.drawing.canvas import Canvas
from services.console.pages.drawing.components import tag
from services.console.pages.reading import Asked, Index
from services.console.pages.shared_answers import SharedAnswers
from services.console.pages.tokenizer import Tokenizer
from services.console.pages.view import View

AT_LEAST_EVERY_S = 15.0
"""How often a page is drawn again although nothing was added: times such as `3 s ago` grow."""

RESPONSE_S = 30.0
"""How long a page may take before an error is shown instead."""

CONNECTED_S = 90.0
"""How long a page may take to open its web socket."""

logger = logs.get()


class Shell:
    """Serves views as pages."""

    def __init__(
        self,
        views: Sequence[View],
        index: Index,
        sessions: Sessions,
        actions: Mapping[str, Action],
        codec: Codec,
        tokenizer: Tokenizer,
        head: str,
    ) -> None:
        self._views = views
        self._index = SharedAnswers(index)
        self._sessions = sessions
        self._actions = actions
        self._codec = codec
        self._tokenizer = tokenizer
        self._head = head
        self._changes = Changes(self._index)
        self._tasks: set[asyncio.Task[None]] = set()

    def install(self) -> None:
        """Give each view its page."""
        for view in self._views:
            ui.page(view.path, title=f"{view.title} · Fulgurite", response_timeout=RESPONSE_S)(
                self._page(view)
            )

    def _page(self, view: View) -> Callable[[Client, Request], object]:
        async def page(client: Client, request: Request) -> None:
            ui.add_head_html(self._head)
            address = Address.read(view.path, request.query_params.items())
            session = session_of(request.scope)
            with tag("div", classes="shell wide" if view.wide else "shell"):
                self._navigation(view, session, str(address))
                with tag("div", classes="page") as main:
                    with tag("header", classes="title"):
                        tag("h1", view.title)
                        tag("p", view.question, "note")
                    content = tag("div", classes="content")
            ui.skip_link(target=main)
            actions = Actions(
                self._actions, self._sessions, session.id if session else None, str(address)
            )
            canvas = Canvas(content, actions.ask)
            canvas.show(await self._content(view, address))
            self._refresh(view, address, client, canvas, session)

        return page

    async def _content(self, view: View, address: Address) -> Sequence[Block]:
        asked = Asked(self._index, address, now_ms(), self._codec, self._tokenizer)

        def answer() -> Sequence[Block]:
            self._index.revision()
            return view.content(asked)

        try:
            return await asyncio.to_thread(answer)
        # The edge of a request: its failure is shown to who asked for it.
        except Exception as error:
            logger.exception("a view failed", view=view.path)
            return [
                Notice(
                    f"This view cannot be shown: {type(error).__name__}. The console's log says "
                    "why.",
                    "bad",
                )
            ]

    def _refresh(
        self,
        view: View,
        address: Address,
        client: Client,
        canvas: Canvas,
        session: Session | None,
    ) -> None:
        """Draw the page again when the index has grown, one drawing at a time, while it is
        looked at.
        """
        grown = asyncio.Event()

        async def follow() -> None:
            with ExitStack() as ending:
                # From now on: what is added while the browser opens the page must show, too.
                ending.callback(self._changes.watch(grown.set))
                try:
                    await client.connected(CONNECTED_S)
                except TimeoutError:
                    # A program asked for the page, which opens no web socket.
                    return
                while not client.is_deleted:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(grown.wait(), AT_LEAST_EVERY_S)
                    grown.clear()
                    if self._may_still_read(session):
                        blocks = await self._content(view, address)
                    else:
                        blocks = [session_ended(address)]
                    if not client.is_deleted:
                        with client:
                            canvas.show(blocks)

        cast(Any, client).on_delete(grown.set)
        task = asyncio.create_task(follow())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _may_still_read(self, session: Session | None) -> bool:
        return self._sessions.may_read(self._sessions.get(session.id if session else None))

    def _navigation(self, current: View, session: Session | None, address: str) -> None:
        with tag("aside", classes="side"):
            tag("a", "Fulgurite", "brand", href="/")
            with tag("nav", classes="views", aria_label="Views"):
                listed = [view for view in self._views if view.key]
                for section, views in groupby(listed, key=lambda view: view.section):
                    if section:
                        tag("span", section, "note")
                    for view in views:
                        self._entry(view, current)
            with tag("div", classes="tools"):
                tag("button", "Theme", type="button", id="theme", title="Light, dark, system (t)")
                tag("button", "Keys", type="button", id="keys", title="Keyboard shortcuts (?)")
                self._key(session, address)

    def _entry(self, view: View, current: View) -> Element:
        entry = tag("a", view.title, href=view.path, title=f"{view.question} (g {view.key})")
        entry.props["data-key"] = view.key
        if view.path == current.path:
            entry.props["aria-current"] = "page"
        return entry

    def _key(self, session: Session | None, address: str) -> None:
        """How to enter a key, or to leave."""
        if session and session.role != "none":
            with tag("form", method="post", action=f"{SIGN_IN}/end"):
                tag("input", type="hidden", name="token", value=session.form_token)
                tag("button", "Leave", type="submit", title=f"You have the {session.role} key")
        elif self._sessions.has_admin:
            tag("a", "Enter key", href=link(SIGN_IN, next=address))


def session_ended(address: Address) -> Notice:
    """What an open page shows once its session has ended."""
    # The guard asks for the key, unless the browser has entered one meanwhile.
    return Notice(
        "The session of this page has ended.",
        "warning",
        link=Link("Open the page again", str(address)),
    )
