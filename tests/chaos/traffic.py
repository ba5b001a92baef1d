"""Groups of rollouts as the gateway would log them, seeded: some twenty open at any time, each of a
shape that real agents have.

What the traffic holds is decided by the seed; only times are the clock's. What comes when its group
was perhaps closed is a *late* event (a call after the end, a reward of another value, an end of a
rollout that was timed out). A group without any is *punctual*. Of the others the revisions on the
way depend on when things came; the last one does not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from fulgurite.enums import Mode, StatusKind
from fulgurite.events import AgentReward, AgentStatus, LlmCall
from fulgurite.failures import FailureKind
from fulgurite.ids import mint_group
from tests.synthetic import make_call, make_declared, make_reward, make_status

RUN = "chaos"
"""Groups of this run are judged by the reward worker, the others by whoever posts rewards."""

AT_ONCE = 20
"""Groups that are open at the same time."""

HOUR_MS = 3_600_000
Made = LlmCall | AgentStatus | AgentReward


class Shaped(NamedTuple):
    """One group: its events in their order, and what comes long after."""

    events: list[Made]
    late: list[Made]
    punctual: bool = True
    together: bool = False
    """Whether its events must be in the log before its deadline, and so go out at once."""


class Part(NamedTuple):
    """What is published together."""

    events: list[Made]
    late: list[Made]
    after_verdicts: list[Made]
    """What may come only when time-outs have been told: else there would be none to tell."""
    punctual: set[str]
    """Groups that begin here and of which nothing comes late."""
    deadline: int | None
    """By when all must be in the log."""


class Traffic:
    """Parts, until enough calls were made. `now` is the clock, `deadline_ms` what rollouts get that
    never end.
    """

    def __init__(self, seed: int, calls: int, now: Callable[[], int], deadline_ms: int) -> None:
        self._chance = random.Random(seed)
        self._calls = calls
        self._now = now
        self._deadline_ms = deadline_ms
        self.minted: dict[int, int] = {}
        """When each group began, Unix milliseconds."""

    def group_id(self, number: int) -> str:
        """As the gateway mints them: the time is in it."""
        return mint_group(self.minted[number], number.to_bytes(10, "big"))

    def parts(self, size: int) -> Iterator[Part]:
        """Of about `size` events."""
        open_groups: list[list[Made]] = []
        made = 0
        while made < self._calls or open_groups:
            part = Part([], [], [], set(), None)
            while len(part.events) < size and (made < self._calls or open_groups):
                while made < self._calls and len(open_groups) < AT_ONCE:
                    shaped = self._group()
                    made += sum(
                        isinstance(event, LlmCall) for event in (*shaped.events, *shaped.late)
                    )
                    (part.after_verdicts if shaped.together else part.late).extend(shaped.late)
                    if shaped.punctual:
                        part.punctual.add(shaped.events[0].group_id)
                    if shaped.together:
                        part.events.extend(shaped.events)
                        part = part._replace(deadline=self._now() + self._deadline_ms)
                    else:
                        open_groups.append(shaped.events)
                chosen = self._chance.choice(open_groups)
                part.events.append(chosen.pop(0))
                if not chosen:
                    open_groups.remove(chosen)
            yield part

    def _group(self) -> Shaped:
        number = len(self.minted)
        self.minted[number] = self._now()
        (shape,) = self._chance.choices(
            (
                self._plain,
                self._tried_again,
                self._late_rewards,
                self._late_calls,
                self._troubled,
                self._live,
            ),
            (40, 20, 12, 12, 8, 8),
        )
        # One of each first: a short run has them too.
        first = (
            self._troubled,
            self._late_calls,
            self._late_rewards,
            self._tried_again,
            self._live,
            self._plain,
        )
        return (first[number] if number < len(first) else shape)(number, self.minted[number])

    def _plain(self, number: int, at: int) -> Shaped:
        """Rollouts with calls that extend one another, some of which are asked twice or for two
        answers; ends; rewards.
        """
        size = self._chance.randint(2, 5)
        judged = self._chance.random() < 0.5
        events: list[Made] = [
            declared(number, size, at, judged=judged),
            *(make_status(number, i, StatusKind.started, at=at + 1) for i in range(size)),
        ]
        events += self._interleaved(
            [self._rollout(number, index, at + 10, 0) for index in range(size)]
        )
        return Shaped(events + ([] if judged else self._rewards(number, range(size), at + 500)), [])

    def _tried_again(self, number: int, at: int) -> Shaped:
        """One rollout fails and is tried again, up to the most attempts."""
        tries = self._chance.randint(2, 3)
        judged = self._chance.random() < 0.5
        attempts: list[Made] = []
        for attempt in range(tries):
            failure = FailureKind.infrastructure if attempt + 1 < tries else None
            attempts += self._rollout(number, 0, at + 10 + 100 * attempt, attempt, failure=failure)
        others = [self._rollout(number, index, at + 10, 0) for index in (1, 2)]
        paid = [] if judged else self._rewards(number, range(3), at + 500)
        events: list[Made] = [
            declared(number, 3, at, judged=judged, max_attempts=3),
            *self._interleaved([attempts, *others]),
        ]
        return Shaped([*events, *paid], [])

    def _late_rewards(self, number: int, at: int) -> Shaped:
        """Somebody thinks better of it, twice; one reward could not be computed at first."""
        events: list[Made] = [declared(number, 3, at, judged=False)]
        events += self._interleaved(
            [self._rollout(number, index, at + 10, 0) for index in range(3)]
        )
        events += [
            *self._rewards(number, (0, 1), at + 500),
            make_reward(number, 2, None, at=at + 500),
        ]
        late = [
            make_reward(number, 0, 0.25, at=at + 90_000),
            make_reward(number, 2, 0.5, at=at + 91_000),
            make_reward(number, 0, 0.75, at=at + 92_000),
        ]
        return Shaped(events, list(late), punctual=False)

    def _late_calls(self, number: int, at: int) -> Shaped:
        """A call that an agent made in the background, after it said that it was done; and an
        attempt that nobody had promised.
        """
        judged = self._chance.random() < 0.5
        events: list[Made] = [declared(number, 3, at, judged=judged, max_attempts=2)]
        events += self._interleaved(
            [self._rollout(number, index, at + 10, 0) for index in range(3)]
        )
        events += [] if judged else self._rewards(number, range(3), at + 500)
        late: list[Made] = [
            make_call(number, 1, 50, at=at + 20, prompt=[9, 9, number % 97], answers=[[3, 4]])
        ]
        if self._chance.random() < 0.5:
            late += [
                *self._rollout(number, 2, at + 600, 1),
                *([] if judged else [make_reward(number, 2, 0.5, attempt=1, at=at + 800)]),
            ]
        return Shaped(events, late, punctual=False)

    def _troubled(self, number: int, at: int) -> Shaped:
        """0 ends well, 1 is heard of and never ends, 2 is promised an attempt that never comes, 3
        is never heard of; not all are paid.
        """
        done = declared(number, 4, at, judged=False, max_attempts=2, lasts_ms=self._deadline_ms)
        failed = self._rollout(number, 2, at + 10, 0, failure=FailureKind.infrastructure)
        rollouts = [
            self._rollout(number, 0, at + 10, 0),
            self._rollout(number, 1, at + 10, 0)[:-1],
            failed,
        ]
        events: list[Made] = [
            done,
            *self._interleaved(rollouts),
            *self._rewards(number, (0,), at + 500),
        ]
        late: list[Made] = [
            make_reward(number, 1, 0.5, at=at + 95_000),
            make_status(number, 1, at=at + 96_000),
        ]
        return Shaped(events, late, punctual=False, together=True)

    def _live(self, number: int, at: int) -> Shaped:
        """Traffic that nobody declared ends by silence."""
        call = make_call(number, 0, 0, at=at, mode=Mode.live, prompt=[4, 5, number % 97])
        return Shaped([call, make_reward(number, 0, self._value(), at=at + 10)], [], punctual=False)

    def _rollout(
        self, number: int, index: int, at: int, attempt: int, failure: FailureKind | None = None
    ) -> list[Made]:
        """Calls of one attempt and its end."""
        prompt = [1, 2, 3, number % 97, index]
        events: list[Made] = []
        for turn in range(self._chance.randint(3, 7)):
            answer = [10 + self._chance.randrange(50) for _ in range(8)]
            began = at + 10 * turn
            if self._chance.random() < 0.1:
                # Asked once more, and gone on from the second answer: the first is superseded.
                first = [10 + self._chance.randrange(50) for _ in range(5)]
                events.append(
                    make_call(
                        number,
                        index,
                        turn,
                        attempt=attempt,
                        at=began,
                        prompt=prompt,
                        answers=[first],
                        salt=1,
                    )
                )
                began += 6
            answers = [answer, [*reversed(answer)]] if self._chance.random() < 0.1 else [answer]
            finish = "length" if self._chance.random() < 0.05 else "stop"
            call = make_call(
                number,
                index,
                turn,
                attempt=attempt,
                at=began,
                prompt=prompt,
                answers=answers,
                finish=finish,
                salt=10 + attempt,
            )
            events.append(call)
            prompt = [*prompt, *answer, 5, 6]
        kind = StatusKind.finished if failure is None else StatusKind.failed
        events.append(
            make_status(
                number,
                index,
                kind,
                attempt=attempt,
                at=at + 90,
                failure=failure,
                will_retry=failure is not None,
            )
        )
        return events

    def _rewards(self, number: int, indices: Sequence[int], at: int) -> list[Made]:
        return [make_reward(number, index, self._value(), at=at) for index in indices]

    def _value(self) -> float:
        return self._chance.choice((0.0, 0.5, 1.0))

    def _interleaved(self, lists: list[list[Made]]) -> list[Made]:
        """One list of all, each in its own order."""
        merged: list[Made] = []
        lists = [list(events) for events in lists if events]
        while lists:
            chosen = self._chance.choice(lists)
            merged.append(chosen.pop(0))
            if not chosen:
                lists.remove(chosen)
        return merged


def declared(
    number: int, size: int, at: int, *, judged: bool, max_attempts: int = 1, lasts_ms: int = HOUR_MS
) -> AgentStatus:
    """Declared, with a deadline that is far away; `judged`: by the reward worker."""
    run_id = RUN if judged else None
    return make_declared(
        number,
        size,
        at=at,
        deadline=at + lasts_ms,
        max_attempts=max_attempts,
        run_id=run_id,
        credit="gigpo(gamma=0.9)",
    )


def repeated(events: Sequence[Made], chance: random.Random) -> list[Made]:
    """Some of the events, said again: producers may repeat themselves."""
    return chance.sample(list(events), len(events) // 20)


def calls_in(events: Sequence[Made]) -> int:
    """How many of them are calls."""
    return sum(isinstance(event, LlmCall) for event in events)
