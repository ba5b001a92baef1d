"""A simulated stream of rollouts between a gateway's router and a selector, for tests and figures.

Routes are those of the gateway, decisions those of the selector; what models do is drawn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.cost.prices import Prices, parse_prices
from fulgurite.enums import CallOutcome, EpisodeOutcome, Identity, LogprobsMode, Mode, SelectionMode
from fulgurite.events import (
    AgentReward,
    Choice,
    Episode,
    Event,
    LlmCall,
    PolicyRoute,
    RouteTarget,
    SelectionDecision,
)
from fulgurite.failures import FailureKind
from fulgurite.ids import derive_id
from fulgurite.selection.context import context_cell
from fulgurite.selection.rules import SelectionRules
from services.gateway.upstream.policies import PolicyView
from services.gateway.upstream.route import Route
from services.gateway.upstream.routing import Router
from services.selector.alias_selector import AliasSelector
from services.selector.bandit import chances
from tests.synthetic import SAMPLING

ALIAS = "assistant"
EASY, HARD = "easy", "hard"
OPENING = {EASY: 200, HARD: 3_000}
"""Bytes of a task's opening: the context that tells the two apart."""


class Model(msgspec.Struct, frozen=True):
    """What a model does."""

    success: Mapping[str, float]
    """Chance of a reward of 1, by kind of task."""
    price: float
    """Of an episode."""
    seconds: float = 1.0


MODELS: Mapping[str, Model] = {
    "small": Model({EASY: 0.90, HARD: 0.20}, 0.02, 0.5),
    "medium": Model({EASY: 0.92, HARD: 0.55}, 0.08, 1.0),
    "large": Model({EASY: 0.93, HARD: 0.85}, 0.25, 2.0),
    "poor": Model({EASY: 0.50, HARD: 0.10}, 0.01, 0.5),
}


def prices_of(models: Mapping[str, Model]) -> Prices:
    """A million tokens a currency unit: an episode of 1,000 tokens per 0.001 of its price."""
    tables = "\n".join(
        f"[tokens.{name}]\ninput = {model.price * 1_000}\noutput = 0.0"
        for name, model in models.items()
    )
    return parse_prices(f'currency = "EUR"\n{tables}')


def variant_of(name: str) -> str:
    """The variant of a model."""
    return f"upstream:{name}"


class Stream:
    """Rollouts one after another, 100 ms apart."""

    def __init__(
        self,
        rules: SelectionRules,
        seed: int,
        models: Mapping[str, Model] = MODELS,
        mode: SelectionMode = SelectionMode.automatic,
        weights: Mapping[str, float] | None = None,
        hard: float = 0.5,
    ) -> None:
        """`hard`: part of the tasks that are hard. `weights`: of the first route."""
        self.models = dict(models)
        self.random = random.Random(seed)
        self.log: list[Event] = []
        self.hard = hard
        self.now_ms = 1_000_000
        self.begun = 0
        self._seed = seed
        self._mode = mode
        self._rules = rules
        self._view = PolicyView()
        upstreams = {
            name: Route(name, name, f"http://{name}", "openai", name, None, None)
            for name in (ALIAS, *models)
        }
        self.router = Router(upstreams, {}, frozenset(), "", self._view)
        self.selector = self.restarted("first")
        self.set_route(weights or dict.fromkeys(models, 1.0))
        self.write(self.selector.claim(self.now_ms))

    def restarted(self, selector_id: str) -> AliasSelector:
        """A new selector that has read all of the log."""
        selector = AliasSelector(
            ALIAS, selector_id, self._mode, self._rules, chances, prices_of(self.models), 100_000
        )
        for event in self.log:
            selector.apply(event)
        return selector

    def set_route(self, weights: Mapping[str, float]) -> PolicyRoute:
        """What an operator does."""
        route = PolicyRoute(
            event_id=f"route-{len(self.log)}",
            event_time=self.now_ms,
            alias=ALIAS,
            targets=tuple(
                RouteTarget(policy="", upstream=name, weight=weight)
                for name, weight in weights.items()
            ),
            reason="by hand",
            author="operator",
        )
        self.write(route)
        return route

    def write(self, event: Event) -> None:
        """Append to the log; gateway and selector read it."""
        self.log.append(event)
        if isinstance(event, PolicyRoute):
            self._view.apply(event)
        self.selector.apply(event)

    def settle(self) -> None:
        """Let the selector write until it has nothing to write."""
        while (event := self.selector.due(self.now_ms)) is not None:
            self.write(event)

    def run(
        self,
        episodes: int,
        settle_every: int = 5,
        fails: Callable[[str], bool] = lambda name: False,
        until: Callable[[], bool] = lambda: False,
    ) -> list[tuple[str, str, float]]:
        """Run so many rollouts; returns each one's model, kind of task and reward.

        `fails`: whether a model's server refuses its calls. `until`: stop early.
        """
        done: list[tuple[str, str, float]] = []
        for number in range(episodes):
            done.append(self.rollout(fails))
            if number % settle_every == 0:
                self.settle()
                if until():
                    break
        self.settle()
        return done

    def rollout(self, fails: Callable[[str], bool] = lambda name: False) -> tuple[str, str, float]:
        """One rollout of one call, and its reward unless the call fails."""
        self.begun += 1
        self.now_ms += 100
        kind = HARD if self.random.random() < self.hard else EASY
        name = f"{self._seed}-{self.begun}"
        body = {"messages": [{"role": "user", "content": "x" * OPENING[kind]}]}
        route = self.router.candidates(
            ALIAS, name, lambda: context_cell("", body, "chat.completions")
        )[0]
        model = self.models[route.backend]
        is_failed = fails(route.backend)
        call = self._call(name, route, body, model, is_failed=is_failed)
        self.write(_episode(call))
        if is_failed:
            return route.backend, kind, 0.0
        reward = float(self.random.random() < model.success[kind])
        self.write(
            AgentReward(
                event_id=derive_id("reward", name),
                event_time=self.now_ms,
                group_id=call.group_id,
                rollout_id=call.rollout_id,
                name="reward",
                value=reward,
                final=True,
                source="rest",
            )
        )
        return route.backend, kind, reward

    def _call(
        self, name: str, route: Route, body: object, model: Model, *, is_failed: bool
    ) -> LlmCall:
        return LlmCall(
            event_id=f"call-{name}",
            event_time=self.now_ms,
            call_id=f"call-{name}",
            group_id=f"group-{name}",
            rollout_id=f"rollout-{name}",
            attempt=0,
            mode=Mode.live,
            agent="",
            identity=Identity.none,
            api="chat.completions",
            alias=ALIAS,
            backend=route.backend,
            stream=False,
            outcome=CallOutcome.upstream_error if is_failed else CallOutcome.success,
            failure=FailureKind.upstream_error if is_failed else None,
            request=msgspec.json.encode(body).decode(),
            choices=() if is_failed else (Choice(index=0, finish_reason="stop"),),
            sampling=SAMPLING,
            logprobs_mode=LogprobsMode.none,
            prompt_tokens=None if is_failed else 1_000,
            completion_tokens=None if is_failed else 0,
            started_at=self.now_ms,
            finished_at=self.now_ms + round(1_000 * model.seconds),
            variant=route.variant,
            propensity=route.propensity,
            cell=route.cell,
        )

    def shares(self, cell: str = "") -> dict[str, float]:
        """The shares in force, by model."""
        targets = self._view.targets(ALIAS)
        found = {one.upstream or "": one.cell_weights.get(cell, one.weight) for one in targets}
        total = sum(found.values())
        return {name: weight / total for name, weight in found.items()}

    def decisions(self) -> list[SelectionDecision]:
        """What the selectors wrote."""
        return [event for event in self.log if isinstance(event, SelectionDecision)]


def _episode(call: LlmCall) -> Episode:
    return Episode(
        event_id=f"episode-{call.rollout_id}",
        event_time=call.finished_at,
        episode_id=f"{call.rollout_id}/0",
        revision="r0",
        group_id=call.group_id,
        rollout_id=call.rollout_id,
        attempt=0,
        mode=call.mode,
        rule="test",
        inputs=(call.event_id,),
        outcome=EpisodeOutcome.finished,
        will_retry=False,
        started_at=call.started_at,
        ended_at=call.finished_at,
        calls=(call,),
    )


def stored(events: Sequence[Event]) -> list[bytes]:
    """Events as the log holds them."""
    codec = Codec()
    return [codec.encode(event) for event in events]
