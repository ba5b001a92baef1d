"""Actions: what a person may do on a page, with the admin key, after a question.

An action is a function of what its button names and what the person entered. It does what a
command of the command line does, and returns a sentence about it. Actions come over the page's web
socket, which only the page itself can open; whether the session may still act is asked when it
acts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Literal

from nicegui import ui
from nicegui.element import Element

from services.common.runtime import logs
from services.console.pages.access.guard import SIGN_IN
from services.console.pages.access.sessions import Sessions
from services.console.pages.address import link
from services.console.pages.blocks import Button
from services.console.pages.drawing.canvas import enter
from services.console.pages.drawing.components import tag

Action = Callable[[Mapping[str, str]], str]
"""Acts on its arguments, in a thread. Raises ActionRefused."""

News = Literal["positive", "negative"]
"""Whether what is told of an action is good."""

logger = logs.get()


class ActionRefused(Exception):
    """The action was not done; the message says why and what to do."""


class Actions:
    """The actions of a console by name, for one person's page."""

    def __init__(
        self,
        actions: Mapping[str, Action],
        sessions: Sessions,
        session_id: str | None,
        address: str,
    ) -> None:
        self._actions = actions
        self._sessions = sessions
        self._session_id = session_id
        self._address = address

    def ask(self, button: Button) -> None:
        """Ask whether to act, or say what is needed to."""
        with ui.dialog() as dialog, tag("div", classes="dialog"):
            tag("h2", button.label)
            if not self._sessions.has_admin:
                tag("p", "Nobody can act here: the console runs without FULGURITE_ADMIN_KEY.")
                self._close(dialog, "Close")
            elif not self._sessions.may_act(self._session_id):
                tag("p", "This needs the admin key.")
                tag("a", "Enter the admin key", href=link(SIGN_IN, next=self._address))
                self._close(dialog, "Close")
            else:
                self._confirm(button, dialog)
        dialog.on("hide", dialog.delete)
        dialog.open()

    def _confirm(self, button: Button, dialog: ui.dialog) -> None:
        tag("p", button.question)
        entered = {field.name: field.value for field in button.fields}
        for field in button.fields:
            with tag("label", classes="field"):
                tag("span", field.label)
                element = enter(field)

                def note(event: object, name: str = field.name) -> None:
                    entered[name] = str(getattr(event, "args", ""))

                element.on("input", note, js_handler="(event) => emit(event.target.value)")

        async def act() -> None:
            if "disabled" in yes.props:
                # The second of two clicks.
                return
            yes.props["disabled"] = True
            text, kind = await self._act(button, entered)
            dialog.close()
            ui.notify(text, type=kind, multi_line=True, close_button=True, timeout=8000)

        yes = tag("button", button.label, f"action {button.tone}", type="button")
        yes.on("click", act)
        self._close(dialog, "Cancel")

    def _close(self, dialog: ui.dialog, text: str) -> Element:
        return tag("button", text, type="button", autofocus=True).on("click", dialog.close)

    async def _act(self, button: Button, entered: Mapping[str, str]) -> tuple[str, News]:
        """Act if the session still may. Returns a sentence, and whether it is good or bad news."""
        if not self._sessions.may_act(self._session_id):
            return "The session has ended. Enter the admin key again.", "negative"
        arguments = dict(button.arguments) | dict(entered)
        try:
            text = await asyncio.to_thread(self._actions[button.action], arguments)
        except ActionRefused as error:
            logger.info("an action was refused", action=button.action, reason=str(error))
            return str(error), "negative"
        # The edge of a request: its failure is told to who asked for it.
        except Exception:
            logger.exception("an action failed", action=button.action)
            return "The action failed. The console's log says why.", "negative"
        logger.info("an action was done", action=button.action, arguments=arguments)
        return text, "positive"
