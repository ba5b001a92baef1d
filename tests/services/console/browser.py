"""Drives a real Chromium over its DevTools protocol.

Found is `FULGURITE_CHROMIUM`, a Chromium or Chrome on the PATH, or the one that `make browser` puts
into `.fulgurite/browser`. Where there is none, tests say so and skip.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OWN = Path(".fulgurite/browser/chromium")
WAIT_S = 30.0


def find_chromium() -> str | None:
    """The program, None if there is none."""
    given = os.environ.get("FULGURITE_CHROMIUM")
    found = (shutil.which(name) for name in NAMES)
    own = str(OWN.resolve()) if OWN.is_file() else None
    return given or next((path for path in found if path), None) or own


class Tab:
    """A tab of the browser, with what it asked for and what its console said."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loads = 0
        self._arrived = asyncio.Event()
        self.requests: list[str] = []
        self.bytes_received = 0
        self.problems: list[str] = []
        """Errors of scripts and of the content security policy."""

    async def read(self) -> None:
        """Take what the browser sends, until it closes."""
        async for message in self._socket:
            event = json.loads(message.data)
            if "id" in event:
                self._replies.pop(event["id"]).set_result(event)
            else:
                self._note(event["method"], event["params"])

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loads += 1
            self._arrived.set()
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Network.webSocketCreated":
            self.requests.append(params["url"])
        elif method == "Network.loadingFinished":
            self.bytes_received += int(params["encodedDataLength"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        number = next(self._numbers)
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._replies[number] = reply
        await self._socket.send_json({"id": number, "method": method, "params": params})
        event = await asyncio.wait_for(reply, WAIT_S)
        if "error" in event:
            raise RuntimeError(f"{method}: {event['error']}")
        return event["result"]

    async def goto(self, url: str) -> None:
        """Open an address, and wait until the page is connected to the console."""
        await self.leave_for(lambda: self.call("Page.navigate", url=url))

    async def leave_for(self, act: Callable[[], Any]) -> None:
        """Do what opens another page, and wait until that is connected."""
        loads = self._loads
        await act()
        async with asyncio.timeout(WAIT_S):
            while self._loads == loads:
                self._arrived.clear()
                await self._arrived.wait()
        await self.wait_for("window.socket === undefined || window.socket.connected")

    async def js(self, code: str) -> Any:
        """The value of an expression."""
        result = await self.call(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(f"{code}: {result['exceptionDetails']}")
        return result["result"].get("value")

    async def wait_for(self, code: str) -> Any:
        """Wait until an expression is true; its value."""
        waiting = (
            "new Promise(done => { const look = () => { let found; try { found = "
            f"({code}) }} catch {{ }} found ? done(found) : setTimeout(look, 25) }}; look() }})"
        )
        return await self.js(waiting)

    async def text(self, selector: str = ".page") -> str:
        """The text of an element, as it is shown."""
        return await self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    async def click(self, selector: str) -> None:
        """Click an element once it is there."""
        await self.wait_for(f"document.querySelector({json.dumps(selector)})")
        await self.js(f"document.querySelector({json.dumps(selector)}).click()")

    async def press(self, key: str, **more: Any) -> None:
        """Press a key."""
        text = {"text": key} if len(key) == 1 else {}
        await self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text, **more)
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=key, **more)

    async def size(self, width: int, height: int, *, mobile: bool = False) -> None:
        """Give the page a width and a height."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )

    async def scheme(self, name: str) -> None:
        """Prefer `light` or `dark`."""
        await self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": name}],
        )

    async def screenshot(self, path: Path) -> None:
        """Write what is shown as PNG."""
        found = await self.call("Page.captureScreenshot", format="png")
        await asyncio.to_thread(path.write_bytes, base64.b64decode(found["data"]))


@asynccontextmanager
async def chromium(program: str) -> AsyncGenerator[Tab]:
    """A browser with one tab."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            program,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            env=_environment(program),
        )
        try:
            port = await _port(Path(profile) / "DevToolsActivePort", process)
            async with (
                aiohttp.ClientSession() as session,
                session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as reply,
            ):
                address = (await reply.json())["webSocketDebuggerUrl"]
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    tab = Tab(socket)
                    reading = asyncio.create_task(tab.read())
                    for domain in ("Page", "Runtime", "Network", "Log"):
                        await tab.call(f"{domain}.enable")
                    await tab.size(1280, 900)
                    yield tab
                    reading.cancel()
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _environment(program: str) -> dict[str, str]:
    """The environment of a browser: the one of `make browser` has its libraries beside it."""
    libraries = OWN.parent.resolve() / "lib"
    is_own = Path(program).resolve() == OWN.resolve()
    return {**os.environ, **({"LD_LIBRARY_PATH": str(libraries)} if is_own else {})}


async def _port(file: Path, process: asyncio.subprocess.Process) -> int:
    """The port that the browser chose, once it has written it."""
    async with asyncio.timeout(WAIT_S):
        while (port := await asyncio.to_thread(_first_number, file)) is None:
            if process.returncode is not None:
                raise RuntimeError(f"the browser ended with {process.returncode}")
            await asyncio.sleep(0.05)
    return port


def _first_number(file: Path) -> int | None:
    words = file.read_text().split() if file.is_file() else []
    return int(words[0]) if words else None
