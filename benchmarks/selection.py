"""Measures model selection on simulated streams, through the gateway's router and the selector.

    python -m benchmarks.selection [--seeds 5]

Four variants with different success and price answer easy and hard tasks. Reported are regret
against the best fixed variant and against the oracle, how soon a variant that begins to fail loses
its traffic, off-policy estimates against on-policy results, and verdicts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import msgspec

from fulgurite.errors import NoSupport
from fulgurite.events import AgentReward, Episode
from fulgurite.selection.comparison import compare_routers
from fulgurite.selection.logged import LoggedEpisode, Weights, logged_episode
from fulgurite.selection.rules import Objective, SelectionRules
from tests.selection_stream import ALIAS, EASY, HARD, MODELS, Model, Stream, prices_of, variant_of

EPISODES = 4_000
WEIGHTS = Weights(price=1.0)
RULES = SelectionRules(weights=WEIGHTS)


def worth(model: Model, kind: str) -> float:
    """What an episode of a model earns on average."""
    return model.success[kind] - WEIGHTS.price * model.price


def fixed(model: Model) -> float:
    """What a model earns per episode of the mixed stream."""
    return (worth(model, EASY) + worth(model, HARD)) / 2


BEST = max(MODELS, key=lambda name: fixed(MODELS[name]))
ORACLE = sum(max(worth(model, kind) for model in MODELS.values()) for kind in (EASY, HARD)) / 2


def regret(seeds: range) -> None:
    """Print what selectors with and without context earn."""
    print(f"oracle {ORACLE:.3f}, best fixed variant ({BEST}) {fixed(MODELS[BEST]):.3f} per episode")
    floors = 4 * RULES.floor
    even = sum(fixed(model) for model in MODELS.values()) / 4
    print(f"most that floors allow: {(1 - floors) * ORACLE + floors * even:.3f}\n")
    print("| selector | all | first quarter | last quarter | regret: oracle | best fixed |")
    print("|---|---|---|---|---|---|")
    for label, rules in (
        ("by context", RULES),
        ("one share for all", msgspec.structs.replace(RULES, cells=0)),
    ):
        rows: list[tuple[float, ...]] = []
        for seed in seeds:
            done = Stream(rules, seed).run(EPISODES)
            values = [worth(MODELS[name], kind) for name, kind, _ in done]
            quarter = EPISODES // 4
            mean = statistics.fmean(values)
            rows.append(
                (
                    mean,
                    statistics.fmean(values[:quarter]),
                    statistics.fmean(values[-quarter:]),
                    (ORACLE - mean) * EPISODES,
                    (fixed(MODELS[BEST]) - mean) * EPISODES,
                )
            )
        cells = [
            spread(column, 3 if place < 3 else 0)
            for place, column in enumerate(zip(*rows, strict=True))
        ]
        print(f"| {label} | {' | '.join(cells)} |")


def spread(values: tuple[float, ...], digits: int) -> str:
    """The mean, and the least and greatest."""
    mean = statistics.fmean(values)
    return f"{mean:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def failing(seeds: range) -> None:
    """Print how soon a variant that begins to fail loses its traffic."""
    print("\n| medium, after 2,000 episodes | seed | share before | its own episodes | all |")
    print("|---|---|---|---|---|")
    bad = Model({EASY: 0.0, HARD: 0.0}, MODELS["medium"].price)
    scenarios: dict[str, tuple[Mapping[str, Model], Callable[[str], bool]]] = {
        "every call fails": (MODELS, lambda name: name == "medium"),
        "every reward is 0": ({**MODELS, "medium": bad}, lambda name: False),
    }
    rules = msgspec.structs.replace(RULES, cells=0)
    for label, (models, fails) in scenarios.items():
        for seed in seeds:
            stream = Stream(rules, seed)
            stream.run(2_000)
            before = stream.shares()["medium"]
            stream.models = dict(models)

            def at_floor(stream: Stream = stream) -> bool:
                return stream.shares()["medium"] <= rules.floor

            done = stream.run(4_000, settle_every=1, fails=fails, until=at_floor)
            own = sum(name == "medium" for name, _, _ in done)
            reached = f"{own} | {len(done)}" if at_floor() else f"{own} | not within {len(done)}"
            print(f"| {label} | {seed} | {before:.2f} | {reached} |")


def off_policy(seeds: range) -> None:
    """Print estimates for other shares from an even split, and what these shares really earn."""
    candidate = {"small": 0.1, "medium": 0.3, "large": 0.5, "poor": 0.1}
    truth = sum(share * fixed(MODELS[name]) for name, share in candidate.items())
    still = msgspec.structs.replace(RULES, every=10**9)
    print(f"\noff-policy: shares {candidate} earn {truth:.4f} on average")
    print("| seed | estimate from 1,000 episodes of an even split | on-policy, 1,000 | inside |")
    print("|---|---|---|---|")
    inside = total = 0
    for seed in range(20):
        stream = Stream(still, seed)
        stream.run(1_000, settle_every=1_000)
        try:
            found = compare_routers(
                logged(stream), {variant_of(n): s for n, s in candidate.items()}, WEIGHTS
            )
        except NoSupport as error:
            print(f"| {seed} | refused: {error} | | |")
            continue
        on_policy = Stream(still, seed + 1_000, weights=candidate).run(1_000, settle_every=1_000)
        earned = statistics.fmean(r - WEIGHTS.price * MODELS[n].price for n, _, r in on_policy)
        low, high = found.candidate.low or 0.0, found.candidate.high or 0.0
        total += 1
        inside += low <= truth <= high
        if seed in seeds:
            is_inside = "yes" if low <= truth <= high else "no"
            print(f"| {seed} | {found.candidate} | {earned:.3f} | {is_inside} |")
    print(f"the true mean is inside {inside} of {total} intervals of 95%")


def logged(stream: Stream) -> list[LoggedEpisode]:
    """The stream's rewarded episodes, as `fulgurite select try` reduces them."""
    rewards = {e.rollout_id: e.value or 0.0 for e in stream.log if isinstance(e, AgentReward)}
    prices = prices_of(MODELS)
    found = (
        logged_episode(event, ALIAS, rewards[event.rollout_id], prices)
        for event in stream.log
        if isinstance(event, Episode) and event.rollout_id in rewards
    )
    return [one for one in found if one is not None]


def verdicts() -> None:
    """Print how long comparisons take, and how often they are wrong where there is nothing."""
    print(
        "\n| success of the two | verdicts for the better | wrong | undecided | episodes, median |"
    )
    print("|---|---|---|---|---|")
    rules = SelectionRules(objective=Objective.verdict, most_episodes=3_000, every=100)
    for one, other in ((0.5, 0.5), (0.5, 0.6), (0.4, 0.6), (0.2, 0.8)):
        models = {
            name: Model({EASY: success, HARD: success}, 0.0)
            for name, success in (("a", one), ("b", other))
        }
        right = wrong = none = 0
        took: list[int] = []
        for seed in range(20):
            stream = Stream(rules, seed, models)
            has_ended = stream.selector.history.verdict
            stream.run(3_200, settle_every=100, until=lambda found=has_ended: found() is not None)
            verdict = has_ended()
            winner = verdict.winner if verdict else None
            right += winner == "upstream:b" and other > one
            wrong += winner is not None and not (winner == "upstream:b" and other > one)
            none += winner is None
            took.append(stream.begun)
        print(f"| {one}, {other} | {right} | {wrong} | {none} | {statistics.median(took):.0f} |")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    began = time.monotonic()
    for part in (regret, failing, off_policy):
        part(seeds)
        print(f"\n({time.monotonic() - began:.0f} s)")
    verdicts()
    print(f"\n({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
