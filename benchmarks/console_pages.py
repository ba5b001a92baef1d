"""How long the console's pages take until they can be used, in a real Chromium.

`python -m benchmarks.console_pages`: the recorded log of the tests, and beside it a bare page of
NiceGUI, in a process of its own. Both are opened in turn. A page can be used once its web socket is
connected and its content is there.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp

from benchmarks.tables import table
from services.local_stack.ports import free_port
from tests.services.console.browser import Tab, chromium, find_chromium
from tests.services.console.recording import RUN
from tests.synthetic import rollout_id

BARE = """
import sys
from nicegui import ui

@ui.page("/")
def page():
    with ui.element("div").classes("content"):
        ui.label("bare")

ui.run(port=int(sys.argv[1]), show=False, reload=False, tailwind=False, show_welcome_message=False)
"""
PAGES = {
    "Now": "/",
    "Runs, one run": f"/runs?run={RUN}",
    "Rollouts": "/rollouts",
    "Timeline": f"/timeline?rollout={rollout_id(0, 0)}",
}
_STARTING_S = 90.0


@asynccontextmanager
async def serving(*command: str) -> AsyncGenerator[str]:
    """A server, and its address once it answers."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *(word.replace("PORT", str(port)) for word in command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(_STARTING_S), aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.get(url):
                        break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.1)
        yield url
    finally:
        process.terminate()
        await process.wait()


async def opened(tab: Tab, url: str) -> tuple[float, int]:
    """Open a page; seconds until it can be used, and bytes that were fetched."""
    before, began = tab.bytes_received, time.perf_counter()
    try:
        await tab.goto(url)
    except TimeoutError as error:
        raise SystemExit(f"{url} cannot be opened") from error
    await tab.wait_for("document.querySelector('.content').children.length")
    return time.perf_counter() - began, tab.bytes_received - before


async def measure(program: str, folder: Path, rounds: int) -> list[list[object]]:
    """Rows of the table: each page without and with the browser's cache."""
    async with AsyncExitStack() as stack:
        bare = await stack.enter_async_context(serving("-c", BARE, "PORT"))
        console = await stack.enter_async_context(
            serving("-m", "tests.services.console.serve_recording", "PORT", str(folder))
        )
        tab = await stack.enter_async_context(chromium(program))
        pages = {"bare NiceGUI page": bare} | {
            name: console + address for name, address in PAGES.items()
        }
        found: dict[tuple[str, bool], list[tuple[float, int]]] = {}
        for is_cached in (False, True):
            await tab.call("Network.setCacheDisabled", cacheDisabled=not is_cached)
            for number in range(rounds + 1):
                for name, url in pages.items():
                    times = await opened(tab, url)
                    # The first round makes what later ones find: caches, compiled statements.
                    if number:
                        found.setdefault((name, is_cached), []).append(times)
    rows: list[list[object]] = []
    for name in pages:
        row: list[object] = [name]
        for is_cached in (False, True):
            seconds = statistics.median(one for one, _ in found[name, is_cached])
            base = statistics.median(one for one, _ in found["bare NiceGUI page", is_cached])
            row += [1000 * seconds, seconds / base]
        rows.append([*row, max(size for _, size in found[name, False]) / 1000])
    return rows


def main() -> None:
    """Measure, and print a table for benchmarks/console_pages.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="times that each page is opened")
    chosen = parser.parse_args()
    program = find_chromium()
    if program is None:
        raise SystemExit("no Chromium: `make browser` fetches one")
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measure(program, Path(folder), chosen.rounds))
    table(
        "Until a page can be used",
        ["page", "first visit, ms", "of bare", "later visit, ms", "of bare", "kB fetched"],
        rows,
    )


if __name__ == "__main__":
    main()
