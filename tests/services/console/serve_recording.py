"""Serves the console on a recorded log, in a process of its own: NiceGUI has one per process.

`python -m tests.services.console.serve_recording PORT FOLDER [empty]`; `more` on the standard input
adds a version with a group. A view of the tests has an action.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fulgurite.avro.codec import Codec
from services.console.pages.actions import ActionRefused
from services.console.pages.blocks import Block, Button, Buttons, Field
from services.console.pages.reading import Asked
from services.console.pages.server import create_app, listen, serve
from services.console.pages.settings import PageSettings
from services.console.pages.view import View
from services.console.pages.views import VIEWS
from tests.services.console.recording import BEGAN, Recording, events, published, recorded_group

MORE = "policy@1.2"


def content(_asked: Asked) -> Sequence[Block]:
    """A page with an action."""
    fields = (Field("reason", "Reason"),)
    return [Buttons((Button("Roll back", "note", "Roll back?", (("version", MORE),), fields),))]


def note(arguments: Mapping[str, str]) -> str:
    """The action: it says what it was given, and refuses without a reason."""
    if not arguments["reason"]:
        raise ActionRefused("Say why.")
    return f"{arguments['version']}: {arguments['reason']}"


async def main(port: int, folder: Path, is_empty: bool) -> None:
    """Serve until the standard input ends."""
    recording = Recording(folder / "index.duckdb")
    if not is_empty:
        recording.write(events())
    settings = PageSettings(console_port=port)
    views = (*VIEWS, View("/act", "Act", "Does it act?", content))
    app = create_app(recording.index, settings, Codec(), views=views, actions={"note": note})
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(app, listen(settings), stop))
    while (await asyncio.to_thread(sys.stdin.readline)).strip() == "more":
        group = recorded_group(7, MORE, (1.0, 0.0), BEGAN + 50_000)
        recording.write([published(MORE, BEGAN + 49_000, 0.9), *group])
    stop.set()
    await serving
    recording.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2]), "empty" in sys.argv[3:]))
