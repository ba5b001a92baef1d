"""A gateway with its promise broken: it answers without waiting for the log. Shows that the tests
of the promise would notice.
"""

from __future__ import annotations

import asyncio

from fulgurite.events import LlmCall
from services.gateway import main
from services.gateway.recording.recorder import Recorder

_record_call = Recorder.record_call
_pending: set[asyncio.Task[object]] = set()


async def _hastily(recorder: Recorder, call: LlmCall) -> None:
    task: asyncio.Task[object] = asyncio.create_task(_record_call(recorder, call))
    _pending.add(task)
    task.add_done_callback(_pending.discard)


if __name__ == "__main__":
    setattr(Recorder, "record_call", _hastily)  # noqa: B010 - the type checker rightly minds
    main.main()
