"""A day of traffic for the console's benchmark, cheap to make: a few groups are made by the core's
own functions, and copied as bytes under other ids.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator

import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.calls.deltas import Link, link_of, shorten
from fulgurite.enums import LedgerTerm, Mode, UpdateKind
from fulgurite.episodes.episode_deltas import pack
from fulgurite.episodes.stitching import stitch
from fulgurite.events import (
    AgentReward,
    AgentStatus,
    Episode,
    Event,
    LedgerEntry,
    LlmCall,
    PolicyUpdate,
    Trajectory,
)
from fulgurite.groups.closing import close_group
from fulgurite.groups.group_revisions import group_closed
from fulgurite.ids import action_id, derive_id, mint_group
from fulgurite.tokens import pack_logprobs, prompt_hash
from fulgurite.topics import POLICY_UPDATES, TOPICS, Topic
from tests.synthetic import group_id, make_call, make_declared, make_reward, make_status

SIZE = 8
"""Rollouts of a group."""
TURNS = 5
CALLS = SIZE * TURNS
_TEMPLATES = 40
"""Different groups; each has its time of the day, version and run."""
_BEGAN_MS = 1_780_000_000_000
_DAY_MS = 24 * 3600 * 1000
ENDED_MS = _BEGAN_MS + _DAY_MS
"""End of the day, in Unix milliseconds."""
_PROMPT, _ANSWER = 700, 150
"""Tokens of the first prompt, and of each answer."""
_WORDS = ("reads a table,", "calls a tool,", "looks at what it gave", "says why", "it is so")
_DERIVED = re.compile(rb"@(?=[0-9a-hjkmnp-tv-z]{32})")
"""What stands before a derived id in Avro: its length."""
_TOPIC_OF = {kind: topic for topic in TOPICS for kind in topic.carries}

Message = tuple[Topic, bytes, bytes]
"""Topic, key and value."""


def traffic(calls: int, first: int = 0, end: int | None = None) -> Iterator[Message]:
    """A day of so many calls: groups with all that becomes of them, from number `first` to before
    `end`, by default the last one.
    """
    codec = Codec()
    for step in range(_TEMPLATES if first == 0 else 0):
        update = _update(step)
        yield POLICY_UPDATES, b"policy", codec.encode(update)
    templates = [_Template(number, codec) for number in range(_TEMPLATES)]
    for number in range(first, calls // CALLS if end is None else end):
        # In order of time, as a day is.
        yield from templates[number * _TEMPLATES // (calls // CALLS)].copy(number)


class _Template:
    """The records of one group, and where its ids stand in them."""

    def __init__(self, number: int, codec: Codec) -> None:
        self._core = group_id(number).removeprefix("gr_").encode()
        self._records = [
            (topic, codec.encode(event))
            for event in _group(number)
            for topic in [_TOPIC_OF[type(event)]]
        ]
        self._places = [
            (
                [found.start() for found in re.finditer(self._core, value)],
                [found.end() for found in _DERIVED.finditer(value)],
            )
            for _, value in self._records
        ]
        self._at = _BEGAN_MS + number * _DAY_MS // _TEMPLATES

    def copy(self, number: int) -> Iterator[Message]:
        """The group's records under ids of their own."""
        core = mint_group(self._at, number.to_bytes(10, "big")).removeprefix("gr_").encode()
        mark = b"%08x" % number
        for (topic, value), (cores, derived) in zip(self._records, self._places, strict=True):
            copied = bytearray(value)
            for place in cores:
                copied[place : place + len(core)] = core
            for place in derived:
                copied[place : place + len(mark)] = mark
            yield topic, b"gr_" + core, bytes(copied)


def _group(number: int) -> Iterator[Event]:
    chance = random.Random(number)
    at = _BEGAN_MS + number * _DAY_MS // _TEMPLATES
    declared = make_declared(
        number, SIZE, at=at, deadline=at + 600_000, run_id=f"run-{number * 4 // _TEMPLATES}",
        mode=Mode.val if number % 10 == 9 else Mode.train,
    )  # fmt: skip
    yield declared
    mode = declared.mode
    episodes: list[Episode] = []
    rewards: list[AgentReward] = []
    for index in range(SIZE):
        inputs: list[LlmCall | AgentStatus] = [
            make_status(number, index, at=at + 60_000 + index, mode=mode)
        ]
        for call, delta in _conversation(number, index, at, mode, chance):
            inputs.append(call)
            yield delta
        yield inputs[0]
        episode = stitch([declared, *inputs])
        assert episode is not None
        episodes.append(episode)
        yield msgspec.structs.replace(episode, calls=pack(episode.calls))
        rewards.append(make_reward(number, index, chance.random(), at=at + 61_000))
    yield from rewards
    outputs = close_group(declared.group_id, declared.declaration, episodes, rewards)
    closed = group_closed(outputs, episodes, rewards, None)
    if closed is None:
        return
    yield from outputs
    yield closed
    rows = [output for output in outputs if isinstance(output, Trajectory)]
    yield LedgerEntry(
        event_id=derive_id("trained", number),
        event_time=at + 120_000,
        policy="policy",
        group_id=declared.group_id,
        group_revision=closed.group_revision,
        term=LedgerTerm.trained,
        actions=tuple(action_id(a.call_id, a.choice) for row in rows for a in row.actions),
        version=f"policy@1.{number}",
        source="learner",
    )


def _conversation(
    number: int, index: int, at: int, mode: Mode, chance: random.Random
) -> Iterator[tuple[LlmCall, LlmCall]]:
    """Turns that extend one another, in full and as the gateway logs them."""
    prompt = [chance.randrange(49_000) for _ in range(_PROMPT)]
    said: list[dict[str, object]] = [
        {"role": "system", "content": _text(chance, 60)},
        {"role": "user", "content": _text(chance, 30)},
    ]
    links: list[Link] = []
    for turn in range(TURNS):
        answer = [chance.randrange(49_000) for _ in range(_ANSWER)]
        reply: dict[str, object] = {"role": "assistant", "content": _text(chance, 30)}
        call = make_call(
            number, index, turn, at=at + 10_000 * turn + index, prompt=prompt, answers=[answer],
            messages=said, replies=[reply], mode=mode, version=f"policy@1.{number}",
            agent=("planner", "writer")[turn % 2],
        )  # fmt: skip
        (choice,) = call.choices
        call = msgspec.structs.replace(
            call,
            prompt_hash=prompt_hash(call.prompt_token_ids or b""),
            choices=(
                msgspec.structs.replace(
                    choice, logprobs=pack_logprobs([-chance.expovariate(3) for _ in answer])
                ),
            ),
            finished_at=call.started_at + chance.randrange(500, 9_000),
        )
        yield call, shorten(call, links)[0]
        links = [link_of(call, 0, turn, turn)]
        prompt = [*prompt, *answer, *(chance.randrange(49_000) for _ in range(80))]
        said = [*said, reply, {"role": "user", "content": _text(chance, 20)}]


def _text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choice(_WORDS) for _ in range(words))


def _update(step: int) -> PolicyUpdate:
    return PolicyUpdate(
        event_id=derive_id("update", step),
        event_time=_BEGAN_MS + step * _DAY_MS // _TEMPLATES,
        policy="policy",
        kind=UpdateKind.update if step else UpdateKind.claim,
        epoch=1,
        step=step,
        version=f"policy@1.{step}" if step else None,
        learner_id="learner",
        trained_actions=CALLS,
        metrics=dict.fromkeys(("loss", "entropy", "kl", "grad_norm", "seconds/step"), step / 7),
        config=json.dumps({"lr": 1e-5}),
    )
