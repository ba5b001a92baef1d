"""Recorded calls are shown as they were served, and nothing else of a group changes."""

from __future__ import annotations

import msgspec

from fulgurite.prompts.history import PromptHistory
from fulgurite.topics import PROMPT_UPDATES
from services.replay.exports import Filters, sft
from services.replay.prompts import read_prompts, with_served_requests
from services.rewarder.closing_settings import ClosingSettings
from tests.fulgurite.prompts.prompt_updates import version
from tests.services.replay.memory_log import CODEC, MemoryLog
from tests.synthetic import make_call, make_declared, make_status

USER: dict[str, object] = {"role": "user", "content": "hi"}


def test_an_export_has_what_was_served() -> None:
    log = MemoryLog()
    # Key b"" lies in the one partition of the topic.
    log.append_bytes(PROMPT_UPDATES, b"", CODEC.encode(version(1, system="New.")))
    log.append_bytes(PROMPT_UPDATES, b"", b"poison")
    served = msgspec.structs.replace(make_call(messages=[USER]), prompt_version="prompt@1")
    log.append(make_declared(0, 1), served, make_status())
    prompts = read_prompts(log, CODEC)
    (group,) = log.groups()

    (chat,) = sft([with_served_requests(group, prompts)], Filters(), ClosingSettings())
    assert chat["messages"][:2] == [{"role": "system", "content": "New."}, USER]
    (sent,) = sft([group], Filters(), ClosingSettings())
    assert sent["messages"][:1] == [USER]


def test_other_calls_stay_as_they_are() -> None:
    log = MemoryLog()
    log.append(make_declared(0, 1), make_call(messages=[USER]), make_status())
    (group,) = log.groups()
    assert with_served_requests(group, PromptHistory()) == group
