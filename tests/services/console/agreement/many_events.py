"""The log of `record_everything`, with what pages and commands might count differently: a group
that two versions answered, attempts of two versions, roles that ask for two aliases, thumbs, a
letter that was written twice, failed loads, routes and prompts that were changed, and a learner
that goes on although another one has taken its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from fulgurite.cost.prices import Prices, parse_prices
from fulgurite.enums import ApplyOutcome, LedgerTerm, Mode, PromptKind, StatusKind
from fulgurite.events import (
    AgentReward,
    DeadLetter,
    Event,
    LedgerEntry,
    LlmCall,
    PolicyApplied,
    PolicyRoute,
    PromptUpdate,
    RouteTarget,
)
from fulgurite.failures import FailureKind
from fulgurite.ids import action_id
from fulgurite.learning.offline import OFFLINE
from services.console.index.reader import IndexReader
from services.console.pages.address import Address
from services.console.pages.blocks import Block
from services.console.pages.reading import Asked, LiveIndex
from services.console.pages.view import View
from tests.services.console.index.recorded_log import (
    CODEC,
    Processors,
    RecordedLog,
    make_update,
    open_writer,
    record_everything,
)
from tests.synthetic import group_id, make_call, make_declared, make_reward, make_status

NOW = 60_000
"""Unix milliseconds, a minute after the log began."""

PRICES = (
    'currency = "EUR"\n[tokens.policy]\ninput = 100\noutput = 200\n'
    "[tokens.other]\ninput = 300\noutput = 400\n"
)


def prices() -> Prices:
    """What tokens cost."""
    return parse_prices(PRICES)


def record_more() -> RecordedLog:
    """The log."""
    log = record_everything()
    _one_group_of_two_versions(log)
    _attempts_of_two_versions(log)
    _roles(log)
    _held_out(log)
    _conversations(log)
    log.append(*_letters(log), *_applied(), *_routes(), *_prompts(), *_offline())
    # The learner of epoch 1 does not know yet that another one has taken its place.
    log.append(make_update(3, epoch=1))
    return log


def _ended(log: RecordedLog, number: int, calls: Sequence[LlmCall]) -> None:
    """A group whose rollouts have made these calls, ended and been rewarded alike."""
    processors = Processors(log)
    members = sorted({call.rollout_id for call in calls})
    mode = calls[0].mode
    processors.take(make_declared(number, len(members), run_id="run-3", mode=mode))
    processors.take(*calls)
    for index in range(len(members)):
        processors.take(make_status(number, index, at=3_000 + index, mode=mode))
    processors.stitch()
    for index in range(len(members)):
        processors.take(make_reward(number, index, 1.0))
    if mode is Mode.train:
        processors.close()


def _one_group_of_two_versions(log: RecordedLog) -> None:
    calls = [make_call(20, index, version=f"policy@1.{index}") for index in range(2)]
    _ended(log, 20, calls)


def _attempts_of_two_versions(log: RecordedLog) -> None:
    processors = Processors(log)
    processors.take(make_declared(21, 1, max_attempts=2, run_id="run-3", at=1_100))
    for attempt, version in enumerate(("policy@1.0", "policy@1.1")):
        processors.take(
            make_call(21, 0, attempt=attempt, at=1_200 + 100 * attempt, version=version),
            make_status(
                21,
                0,
                StatusKind.finished if attempt else StatusKind.failed,
                attempt=attempt,
                at=1_250 + 100 * attempt,
                failure=None if attempt else FailureKind.agent_timeout,
                will_retry=not attempt,
            ),
        )
    processors.stitch()
    processors.take(make_reward(21, 0, 0.5))


def _roles(log: RecordedLog) -> None:
    """The writer asks for two aliases; its groups are trained with one and filtered with the
    other.
    """
    for number, alias, rewards in ((22, "policy", (1.0, 0.0)), (23, "other", (0.5, 0.25))):
        processors = Processors(log)
        processors.take(make_declared(number, 2, run_id="run-3", at=1_300))
        for index in range(2):
            call = make_call(number, index, at=1_400 + index, agent="writer", answers=((5, 6, 7),))
            processors.take(
                msgspec.structs.replace(call, alias=alias),
                make_status(number, index, at=1_500 + index),
            )
        processors.stitch()
        processors.take(*(make_reward(number, index, value) for index, value in enumerate(rewards)))
        processors.close()
        if alias == "policy":
            processors.train("policy@1.1")


def _held_out(log: RecordedLog) -> None:
    """Two rollouts of one version each, and one that two versions answered."""
    calls = [
        make_call(24, 0, mode=Mode.val, version="policy@1.1"),
        make_call(24, 1, mode=Mode.val, version="policy@1.1"),
        make_call(24, 1, 1, mode=Mode.val, version="policy@2.2", at=1_100),
    ]
    _ended(log, 24, calls)
    log.append(make_reward(24, 0, 0.25, at=9_500))


def _conversations(log: RecordedLog) -> None:
    for number, values in enumerate(((1.0,), (0.0, -1.0), ())):
        _conversation(
            log,
            30 + number,
            *(
                make_reward(30 + number, 0, value, name=f"thumb {at}", at=2_600 + at)
                for at, value in enumerate(values)
            ),
        )
    judged = [
        make_reward(33, 0, 0.75, name="judge", fallback=True),
        make_reward(33, 0, 0.5, name="politeness", fallback=True),
    ]
    _conversation(log, 33, *judged)
    voted = [
        make_reward(34, 0, 0.25, name="judge", fallback=True),
        make_reward(34, 0, 1.0, name="thumb 0"),
    ]
    _conversation(log, 34, *voted)
    both_of_one_name = [
        make_reward(35, 0, -1.0, final=False),
        make_reward(35, 0, 0.25, at=4_000, fallback=True),
    ]
    _conversation(log, 35, *both_of_one_name)


def _conversation(log: RecordedLog, number: int, *rewards: AgentReward) -> None:
    processors = Processors(log)
    processors.take(
        make_call(number, 0, mode=Mode.live, at=2_000 + number),
        make_status(number, 0, at=2_500, mode=Mode.live),
    )
    processors.stitch()
    processors.take(*rewards)


def _letters(log: RecordedLog) -> list[Event]:
    """The letter that the log has, once more, and one that names an action."""
    first = next(one.event for one in log.records if isinstance(one.event, DeadLetter))
    other = msgspec.structs.replace(
        first,
        event_id="dead 2",
        error_type="Poison",
        value=b"\x00 no event",
        actions=(action_id(make_call(5, 0).call_id, 0),),
    )
    return [first, other]


def _applied() -> Iterable[Event]:
    for number, (backend, version, outcome) in enumerate(
        (
            ("local", "policy@2.2", ApplyOutcome.failed),
            ("local", "policy@1.0", ApplyOutcome.retired),
            ("second", "policy@2.2", ApplyOutcome.applied),
            ("third", "fresh@0.0", ApplyOutcome.applied),
        )
    ):
        yield PolicyApplied(
            event_id=f"applied again {number}",
            event_time=6_100 + number,
            policy=version.partition("@")[0],
            backend=backend,
            engine_id="e1",
            version=version,
            previous="policy@1.1" if outcome is ApplyOutcome.failed else None,
            outcome=outcome,
            error="no memory" if outcome is ApplyOutcome.failed else None,
            seconds=0.5,
        )


def _routes() -> Iterable[Event]:
    target = RouteTarget(
        policy="policy", version="policy@1.1", weight=1, parameters={"temperature": 0.1234567}
    )
    for alias, targets in (
        ("other", (target, RouteTarget(policy="policy", weight=3))),
        ("gone", (target,)),
        ("gone", ()),
    ):
        yield PolicyRoute(
            event_id=f"route of {alias} {len(targets)}",
            event_time=6_200 + len(targets),
            alias=alias,
            targets=targets,
            reason="a reason",
            author="a person",
        )


def _prompts() -> Iterable[Event]:
    changes = (
        (PromptKind.set, "prompt@2", None, "Be kind."),
        (PromptKind.set, "prompt@2", None, "Too late: the number is taken."),
        (PromptKind.candidate, "prompt@3", None, "Be quick."),
        (PromptKind.set, "prompt@4", "writer", "Write."),
        (PromptKind.rollback, "prompt@1", None, None),
        (PromptKind.rollback, "prompt@9", "writer", None),
    )
    for number, (kind, version, role, system) in enumerate(changes):
        yield PromptUpdate(
            event_id=f"prompt again {number}",
            event_time=6_300 + number,
            alias="policy",
            role=role,
            kind=kind,
            version=version,
            system=system,
            reason="a reason",
            author="a person",
        )


def _offline() -> Iterable[Event]:
    version = "policy@2.2"
    yield LedgerEntry(
        event_id="offline",
        event_time=6_400,
        policy="policy",
        group_id=group_id(22),
        term=LedgerTerm.trained,
        actions=(action_id(make_call(22, 0).call_id, 0),),
        version=version,
        source=OFFLINE,
    )


class Pages:
    """The views on an index of the log."""

    def __init__(self, path: Path, log: RecordedLog) -> None:
        writer = open_writer(path)
        writer.write(log.records)
        writer.write_prices(prices())
        writer.close()
        self.index = LiveIndex(IndexReader(path))

    def show(self, view: View, **query: str) -> Sequence[Block]:
        """What a view shows at an address, of all times."""
        address = Address(view.path, {"since": "all"} | query)
        return view.content(Asked(self.index, address, NOW, CODEC))
