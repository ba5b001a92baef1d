"""The console in a real Chromium."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.console.pages.views import VIEWS
from services.local_stack.ports import free_port
from tests.services.console.browser import Tab, chromium, find_chromium
from tests.services.console.recording import MARKUP, RUN
from tests.synthetic import group_id, rollout_id

PROGRAM = find_chromium()
ADMIN = "admin-key-of-the-test"
MOST_BYTES = 1_000_000

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        PROGRAM is None,
        reason="no Chromium: install one, name it in FULGURITE_CHROMIUM, or run `make browser`",
    ),
]


class Console:
    """A console and a tab of a browser."""

    def __init__(self, url: str, tab: Tab, process: asyncio.subprocess.Process) -> None:
        self.url = url
        self.tab = tab
        self._process = process

    async def open(self, address: str) -> None:
        """Open a page; it must be there, and without errors."""
        await self.tab.goto(self.url + address)
        await self.tab.wait_for("document.querySelector('.content').children.length")

    async def more(self) -> None:
        """Let the log grow."""
        assert self._process.stdin
        self._process.stdin.write(b"more\n")
        await self._process.stdin.drain()


@asynccontextmanager
async def console(folder: Path, *words: str, **settings: str) -> AsyncGenerator[Console]:
    """Serve a recording, and open a browser."""
    port = free_port()
    environment = {**os.environ, "FULGURITE_ADMIN_KEY": ADMIN, **settings}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.services.console.serve_recording",
        str(port),
        str(folder),
        *words,
        stdin=asyncio.subprocess.PIPE,
        env=environment,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        await answering(url, process)
        async with chromium(str(PROGRAM)) as tab:
            yield Console(url, tab, process)
    finally:
        if process.stdin:
            process.stdin.close()
        await process.wait()


async def answering(url: str, process: asyncio.subprocess.Process) -> None:
    """Wait until the console answers."""
    async with asyncio.timeout(90), aiohttp.ClientSession() as session:
        while process.returncode is None:
            try:
                async with session.get(f"{url}/healthz"):
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.1)
    raise RuntimeError(f"the console ended with {process.returncode}")


def addresses() -> list[str]:
    """Every view, and those of one run, rollout and group."""
    return [
        *(view.path for view in VIEWS),
        f"/runs?run={RUN}",
        "/rollouts?samples=best",
        f"/timeline?rollout={rollout_id(0, 0)}",
        f"/group?id={group_id(0)}",
    ]


@pytest.mark.parametrize("words", [(), ("empty",)], ids=["recorded", "empty"])
async def test_every_view_opens_without_errors_and_fetches_nothing_from_elsewhere(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    async with console(tmp_path, *words) as shown:
        tab = shown.tab
        for address in addresses():
            await shown.open(address)
            assert "cannot be shown" not in await tab.text(), address
        assert not tab.problems
        own = (shown.url, shown.url.replace("http", "ws"), "data:", "about:")
        assert not [url for url in tab.requests if not url.startswith(own)]
        assert tab.bytes_received < MOST_BYTES


async def test_what_agents_wrote_is_text(tmp_path: Path) -> None:
    async with console(tmp_path) as shown:
        for address in addresses():
            await shown.open(address)
            assert await shown.tab.js("window.wasRun === undefined")
        await shown.open(f"/timeline?rollout={rollout_id(0, 0)}")
        assert MARKUP in await shown.tab.text()
        await shown.open("/rollouts")
        assert MARKUP in await shown.tab.text()


async def test_a_live_run_moves_the_curve(tmp_path: Path) -> None:
    async with console(tmp_path) as shown:
        await shown.open(f"/runs?run={RUN}")
        labels = "[...document.querySelectorAll('svg text')].map(text => text.textContent)"
        await shown.tab.wait_for(f"{labels}.includes('1.1')")
        assert not await shown.tab.js(f"{labels}.includes('1.2')")
        before = len(shown.tab.requests)
        await shown.more()
        await shown.tab.wait_for(f"{labels}.includes('1.2')")
        assert len(shown.tab.requests) == before
        assert not shown.tab.problems


async def test_filters_are_in_the_address_and_a_point_leads_to_its_step(tmp_path: Path) -> None:
    async with console(tmp_path) as shown:
        tab = shown.tab
        await shown.open("/rollouts")
        await tab.js("document.querySelector('[name=version]').value = 'policy@1.1'")
        await tab.leave_for(
            lambda: tab.js(
                "document.querySelector('[name=version]').dispatchEvent(new Event('change'))"
            )
        )
        assert await tab.js("location.search") == "?version=policy%401.1"
        assert "of 2 rollouts" in await tab.text()


async def test_the_keyboard_reaches_everything(tmp_path: Path) -> None:
    async with console(tmp_path) as shown:
        tab = shown.tab
        await shown.open("/")
        await tab.press("?")
        assert "Runs" in await tab.text("#key-list")
        await tab.js("document.querySelector('#key-list').close()")
        await tab.press("g")
        await tab.leave_for(lambda: tab.press("o"))
        assert await tab.js("location.pathname") == "/rollouts"
        await tab.press("/")
        assert await tab.js("document.activeElement.name") == "q"
        await tab.js("document.activeElement.blur()")
        await tab.press("Tab", code="Tab", windowsVirtualKeyCode=9)
        assert await tab.js("document.activeElement !== document.body")


async def test_light_dark_and_a_phone(tmp_path: Path) -> None:
    async with console(tmp_path) as shown:
        tab = shown.tab
        await tab.scheme("dark")
        await shown.open("/")
        colour = "getComputedStyle(document.body).backgroundColor"
        assert await tab.js(colour) == "rgb(20, 23, 27)"
        await tab.press("t")
        assert await tab.js(colour) == "rgb(255, 255, 255)"
        await shown.open("/runs")
        assert await tab.js(colour) == "rgb(255, 255, 255)"
        await tab.size(390, 844, mobile=True)
        for address in addresses():
            await shown.open(address)
            assert await tab.js("document.documentElement.scrollWidth") <= 390, address


async def test_an_action_needs_the_admin_key_and_asks_before_it_acts(tmp_path: Path) -> None:
    async with console(tmp_path) as shown:
        tab = shown.tab
        await shown.open("/act")
        await tab.click("button.action")
        await tab.wait_for("document.querySelector('.dialog a')")
        assert "needs the admin key" in await tab.text(".dialog")
        await tab.leave_for(lambda: tab.click(".dialog a"))
        await tab.js(f"document.querySelector('[name=key]').value = '{ADMIN}'")
        await tab.leave_for(lambda: tab.js("document.querySelector('form').requestSubmit()"))
        assert await tab.js("location.pathname") == "/act"
        assert ADMIN not in await tab.js("document.documentElement.outerHTML")
        await tab.click("button.action")
        await tab.wait_for("document.querySelector('.dialog input')")
        await enter(tab, ".dialog input", "too greedy")
        await tab.click(".dialog button.action")
        said = "[...document.querySelectorAll('.q-notification')].map(one => one.innerText).join()"
        assert "policy@1.2: too greedy" in await tab.wait_for(said)
        assert not tab.problems


async def enter(tab: Tab, selector: str, text: str) -> Any:
    """Type a text."""
    await tab.js(f"document.querySelector('{selector}').focus()")
    await tab.call("Input.insertText", text=text)
    # The console has it once the input event has been answered for.
    await tab.wait_for(f"document.querySelector('{selector}').value === '{text}'")


async def test_a_read_key_closes_the_pages(tmp_path: Path) -> None:
    async with console(tmp_path, FULGURITE_CONSOLE_READ_KEY="read-key-of-the-test") as shown:
        await shown.tab.goto(f"{shown.url}/runs?run={RUN}")
        assert await shown.tab.js("location.pathname") == "/session"
        await shown.tab.js("document.querySelector('[name=key]').value = 'read-key-of-the-test'")
        await shown.tab.leave_for(
            lambda: shown.tab.js("document.querySelector('form').requestSubmit()")
        )
        assert await shown.tab.js("location.search") == f"?run={RUN}"
        await shown.tab.wait_for("document.querySelector('svg')")
