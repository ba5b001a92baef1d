"""The console on a real broker: what is in the log is on its pages, what a person does there is in
the log, and a signal ends it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from fulgurite.events import DeadLetter, Event, LlmCall, PolicyRoute
from fulgurite.topics import LLM_CALLS, POLICY_ROUTES, TOPICS, Topic
from services.common.kafka.consumer import read_all
from services.common.processes.process import ChildProcess
from services.local_stack.kafka_local import LocalKafka
from services.local_stack.ports import LOCALHOST, answers, free_port
from tests.integration.test_processors import WAIT_S, Deployment, wait_until
from tests.services.console.browser import Tab, chromium, find_chromium
from tests.services.console.recording import BEGAN, MARKUP, RUN, events, published, topic_of
from tests.synthetic import make_call, rollout_id

pytestmark = pytest.mark.engine

PROGRAM = find_chromium()
ADMIN = "admin-key-of-the-test"

E = TypeVar("E", bound=Event)


@pytest.fixture
def deployment(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(kafka.bootstrap_servers, topic_prefix, tmp_path)
    yield made
    made.close()


@contextmanager
def console(deployment: Deployment, **settings: str) -> Generator[tuple[str, ChildProcess]]:
    """A console on the deployment, and its address."""
    port = free_port()
    environment = deployment.environment | {
        "FULGURITE_CONSOLE_INDEX": str(deployment.folder / "console.duckdb"),
        "FULGURITE_CONSOLE_RETENTION_DAYS": "36500",
        "FULGURITE_CONSOLE_PORT": str(port),
    }
    process = ChildProcess(
        [sys.executable, "-m", "services.console.main"],
        deployment.folder / "console.log",
        env=environment | settings,
    )
    try:
        wait_until(lambda: answers(port, "/healthz"), "the console answers")
        yield f"http://{LOCALHOST}:{port}", process
    finally:
        process.kill()


def page(url: str, address: str) -> str:
    """A page without a browser."""
    with urllib.request.urlopen(url + address) as reply:
        return reply.read().decode()


def publish(deployment: Deployment, *written: Event) -> None:
    topics = {topic.name: topic for topic in TOPICS}
    for event in written:
        key = str(getattr(event, "group_id", None) or getattr(event, "policy", ""))
        deployment.producer.submit(topics[topic_of(event)], key, event).result(WAIT_S)


def logged(deployment: Deployment, topic: Topic, kind: type[E]) -> list[E]:
    """The events of a topic."""
    records = read_all(deployment.kafka, topic, deployment.codec)
    return [one.event for one in records if isinstance(one.event, kind)]


def test_the_log_is_on_the_pages(deployment: Deployment) -> None:
    publish(deployment, *events())
    with console(deployment) as (url, process):
        wait_until(lambda: RUN in page(url, "/runs"), "the run is shown")
        wait_until(lambda: "policy@1.1" in page(url, "/step"), "the version is shown")
        timeline = f"/timeline?rollout={rollout_id(0, 0)}"
        wait_until(lambda: "is 1" in page(url, timeline), "the answer is shown")
        assert MARKUP not in page(url, timeline)
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.skipif(
    PROGRAM is None,
    reason="no Chromium: install one, name it in FULGURITE_CHROMIUM, or run `make browser`",
)
async def test_what_a_person_does_with_the_key_is_in_the_log(deployment: Deployment) -> None:
    lost = make_call(8, 0, at=BEGAN)
    letter = DeadLetter(
        event_id="letter-1",
        event_time=BEGAN + 50_000,
        stage="aggregator",
        error_type="Poison",
        error=MARKUP,
        topic=deployment.kafka.topic(LLM_CALLS),
        partition=0,
        offset=0,
        value=deployment.codec.encode(lost),
    )
    publish(deployment, *events(), published("policy@1.2", BEGAN + 45_000, 0.6), letter)

    def routes() -> list[PolicyRoute]:
        return logged(deployment, POLICY_ROUTES, PolicyRoute)

    def is_back() -> bool:
        return any(one.event_id == lost.event_id for one in logged(deployment, LLM_CALLS, LlmCall))

    with console(deployment, FULGURITE_ADMIN_KEY=ADMIN) as (url, _):
        wait_until(lambda: "policy@1.2" in page(url, "/versions"), "the versions are shown")
        wait_until(lambda: "letter-1" in page(url, "/dead-letters"), "the letter is shown")
        async with chromium(str(PROGRAM)) as tab:
            person = Person(tab, url)
            await person.open("/versions?version=policy%401.1")

            # Without the key, and with a wrong one.
            await person.press("Promote")
            assert "This needs the admin key." in await tab.text(".dialog")
            assert not await tab.js("document.querySelector('.dialog button.action')")
            await tab.leave_for(lambda: tab.click(".dialog a"))
            await person.enter_key("wrong")
            assert "This key is not known." in await tab.text("main")
            assert await asyncio.to_thread(routes) == []

            await person.enter_key(ADMIN)
            assert await tab.js("location.pathname + location.search") == (
                "/versions?version=policy%401.1"
            )
            # Asked, and not confirmed.
            await person.press("Promote")
            assert "Have policy@1.1 serve all calls" in await tab.text(".dialog")
            await person.press("Cancel", ".dialog")
            assert await asyncio.to_thread(routes) == []

            said = await person.act("Promote", "held-out is better")
            assert "policy@1.1 serves policy now" in said
            (first,) = await asyncio.to_thread(routes)
            assert [one.version for one in first.targets] == ["policy@1.1"]
            assert (first.reason, first.author.endswith("(console)")) == (
                "held-out is better",
                True,
            )

            await person.open("/versions?version=policy%401.2")
            await person.act("Promote")
            await person.act("Roll back")
            await tab.wait_for("document.querySelector('.page').innerText.includes('policy: 100')")
            third, fourth = (await asyncio.to_thread(routes))[1:]
            assert [one.version for one in third.targets] == ["policy@1.2"]
            assert fourth.targets == first.targets

            await person.open("/dead-letters?letter=letter-1")
            assert not await asyncio.to_thread(is_back)
            assert "1 sent back to llm.calls" in await person.act("Send it back")
            assert await asyncio.to_thread(is_back)
            assert MARKUP in await tab.text()
            assert await tab.js("window.wasRun === undefined")
            # The browser names the refused key's reply, which is no problem of the page.
            assert not [one for one in tab.problems if "403" not in one]


class Person:
    """What somebody does on pages."""

    def __init__(self, tab: Tab, url: str) -> None:
        self._tab = tab
        self._url = url

    async def open(self, address: str) -> None:
        """Open a page."""
        await self._tab.goto(self._url + address)

    async def press(self, text: str, within: str = ".content") -> None:
        """Press the button with a text, and wait for what it opens or closes."""
        await self._tab.wait_for(_button(text, within))
        await self._tab.js(f"{_button(text, within)}.click()")
        is_open = "document.querySelector('.dialog')"
        await self._tab.wait_for(is_open if within == ".content" else f"!{is_open}")

    async def act(self, text: str, reason: str = "") -> str:
        """Press a button, give a reason, confirm; what the console says then."""
        await self.press(text)
        if reason:
            field = ".dialog input[name=reason]"
            await self._tab.js(f"document.querySelector('{field}').focus()")
            await self._tab.call("Input.insertText", text=reason)
        notifications = "[...document.querySelectorAll('.q-notification')]"
        before = await self._tab.js(f"{notifications}.length")
        await self.press(text, ".dialog")
        return await self._tab.wait_for(
            f"{notifications}.length > {before} && {notifications}.at(-1).innerText"
        )

    async def enter_key(self, key: str) -> None:
        """Type a key into the form."""
        await self._tab.js("document.querySelector('[name=key]').focus()")
        await self._tab.call("Input.insertText", text=key)
        await self._tab.leave_for(lambda: self._tab.click("form button"))


def _button(text: str, within: str) -> str:
    """An expression for the button with a text."""
    return (
        f"[...document.querySelectorAll('{within} button')]"
        f".find(one => one.innerText.trim() === {json.dumps(text)})"
    )
