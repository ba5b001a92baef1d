"""Trains on the votes of simulated users, behind a gate, and measures what serves them.

    .venv/bin/python -m benchmarks.live [--seeds 0] [--parts honest poisoned]
        [--conversations 1200] [--held-out 210] [--out benchmarks/live.md]

`honest` begins with the base model. `poisoned` goes on from its log: a fifth of the votes are
turned into their opposite, and one user floods. At its end somebody publishes the weights of the
first version again. The gate is killed once in the middle of each part. Times are a twentieth of
real ones: votes come 0.1 to 12 seconds after an answer. After each wave of conversations the users
wait for the learner, whose batch is about as large, so that the gate judges versions about as fast
as they are made.

What has a report is not run again, and conversations are kept before anything is measured: an
interrupted benchmark goes on with the part that it was at.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.commands import Command, environment_of, fulgurite
from benchmarks.demo_runs import PROJECT
from benchmarks.live_report import PARTS, QUOTA, WAVE, Decision, Held, Report, page
from benchmarks.live_users import Conversation, Progress, Users
from benchmarks.pages import write_page
from benchmarks.prompt_tuning import AGENT, REWARD
from examples.calculator.tasks import Task, make_tasks, write_tasks
from fulgurite.enums import UpdateKind
from fulgurite.events import PolicyRoute, PolicyUpdate
from fulgurite.ids import derive_id
from fulgurite.selection.authors import GATE
from fulgurite.selection.variants import name_variant
from fulgurite.topics import POLICY_ROUTES, POLICY_UPDATES
from services.cli.ledger import read_books
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import read_all
from services.common.kafka.producer import EventProducer
from services.common.policies.route_log import last_routes, write_route
from services.common.policies.route_targets import read_published
from services.common.runtime.clock import now_ms
from services.local_stack.demo import LedgerReport, empty_folder
from services.local_stack.local_stack import LocalStack, StackOptions

ALIAS = "policy"
FILES = PROJECT / "benchmarks" / "live"
GATE_OPTIONS = ("--share=0.5", "--least=30", "--most=90", "--margin=0.25", "--poll=1")
SETTINGS = {
    "FULGURITE_TRAIN_LIVE": ALIAS,
    "FULGURITE_TRAIN_LIVE_QUOTA": str(QUOTA),
    "FULGURITE_AGGREGATOR_SILENCE_S": "2",
    "FULGURITE_REWARDER_LIVE_WAIT_S": "8",
}
_LAST_CHANCE = 400
"""Conversations after which a bad version counts as not rolled back."""
_CHUNK = 40
_SETTLING_S = 120.0


class Run:
    """One part, on a stack that runs."""

    def __init__(
        self, stack: LocalStack, folder: Path, part: str, seed: int, held_out: int, *, again: bool
    ) -> None:
        """`again`: whether the log has an earlier part."""
        self._kafka = stack.kafka
        self._stack = stack
        self._folder = folder
        self._seed = f"{seed} {part}"
        self._environment = environment_of(stack)
        secrets = stack.secrets
        self._users = Users(stack.gateway_url, secrets.api_key, secrets.admin_key, self._seed)
        self._population = PARTS[part]
        self._is_last = again
        # No task of one part is in another.
        self._tasks = iter(make_tasks("train", 4000, seed)[2000 * again :])
        write_tasks(folder / "tasks", seed, 1, held_out)

    def hold(self, conversations: int) -> Held:
        """Let users talk to what is served, while it is trained and judged."""
        began = time.monotonic()
        decided = len(self._decisions())
        first = self._serving()
        with self._gate() as gate, self._fallback():
            on_end = _both(Progress(conversations), _once(conversations // 2, gate))
            held: list[Conversation] = []
            while len(held) < conversations:
                versions = self._versions()
                held += self._talk(min(WAVE, conversations - len(held)), on_end)
                self._wait_for_more(versions)
            bad = self._publish_first_again() if self._is_last else None
            served = self._serving()
            after: list[Conversation] = []
            while bad is not None and len(after) < _LAST_CHANCE and not self._is_over(bad):
                after += self._talk(_CHUNK, Progress(_CHUNK))
        return Held(
            conversations=held,
            bad_version=bad,
            until_rolled_back=after,
            is_rolled_back=None
            if bad is None
            else self._is_over(bad) and self._serving() == served,
            decisions=self._decisions()[decided:],
            updates=self._versions(),
            served=[first, served],
            seconds=time.monotonic() - began,
        )

    def measure(self, held: Held) -> Report:
        """Compare what served at the begin and at the end, and balance the books."""
        began = time.monotonic()
        models = tuple(dict.fromkeys(held.served))
        print(f"measuring {', '.join(models)}", flush=True)
        found = {
            "measured": self._measured(models),
            "ledger": msgspec.to_builtins(self._ledger(waits=held.bad_version is None)),
            "seconds": held.seconds + time.monotonic() - began,
        }
        return msgspec.convert(msgspec.to_builtins(held) | found, Report)

    def _wait_for_more(self, versions: int) -> None:
        """Wait until there are more versions, or two minutes."""
        deadline = time.monotonic() + _SETTLING_S
        while self._versions() <= versions and time.monotonic() < deadline:
            time.sleep(1)

    def _talk(self, count: int, on_end: Callable[[Conversation], None]) -> list[Conversation]:
        tasks: list[Task] = [next(self._tasks) for _ in range(count)]
        return self._users.run(tasks, self._population, on_end)

    def _gate(self) -> Command:
        return self._command("gate", ALIAS, *GATE_OPTIONS)

    def _fallback(self) -> Command:
        reward = f"--reward={FILES / 'rewards.py'}:score"
        return self._command("reward-worker", "--live", reward, "--name=judged")

    def _command(self, *argv: str) -> Command:
        return Command(argv, self._environment, self._folder / f"{argv[0]}.log")

    def _routes(self) -> list[PolicyRoute]:
        found = (record.event for record in read_all(self._kafka, POLICY_ROUTES, make_codec()))
        return [event for event in found if isinstance(event, PolicyRoute)]

    def _decisions(self) -> list[Decision]:
        """What the gate decided. An evaluation puts its route back, which is the same event."""
        ours = {route.event_id: route for route in self._routes() if route.author == GATE}
        return [
            Decision(
                " + ".join(f"{name_variant(one)} {one.weight:g}" for one in route.targets),
                route.reason or "",
            )
            for route in ours.values()
        ]

    def _versions(self) -> int:
        """How many versions there are, beside the base model."""
        fold = read_published(self._kafka).folds.get(ALIAS)
        return 0 if fold is None else len(fold.updates)

    def _serving(self) -> str:
        """The version that serves, alone or beside one on trial."""
        route = last_routes(self._kafka).get(ALIAS)
        targets = route.targets if route is not None else ()
        return (targets[0].version if targets else None) or f"{ALIAS}@0.0"

    def _publish_first_again(self) -> str | None:
        """Publish the weights of the first version as the newest, and return its name; None without
        a version.

        The learner is stopped, and a trial ended by hand, so that nothing newer is tried.
        """
        self._stack.process("learner").stop()
        published = read_published(self._kafka)
        fold = published.folds.get(ALIAS)
        if fold is None or not fold.updates:
            return None
        stable = last_routes(self._kafka)[ALIAS].targets[0]
        whole = msgspec.structs.replace(stable, weight=1.0)
        write_route(self._kafka, ALIAS, (whole,), "to try what is deployed next")
        epoch = max(claimed for name, claimed in published.claims if name == ALIAS) + 1
        first = fold.updates[min(fold.updates)]
        version = f"{ALIAS}@{epoch}.1"
        common: dict[str, Any] = {
            "event_time": now_ms(), "epoch": epoch, "learner_id": "a bad deployment",
            "trained_actions": 0, "metrics": {}, "positions": (), "topic": None,
        }  # fmt: skip
        claim = msgspec.structs.replace(
            first, **common, event_id=derive_id("bad claim", epoch), kind=UpdateKind.claim, step=0,
            version=None, parent_version=None, artifact=None, probe=None,
        )  # fmt: skip
        update = msgspec.structs.replace(
            first, **common, event_id=derive_id("bad update", epoch), step=1, version=version,
            parent_version=str(fold.version()),
        )  # fmt: skip
        self._publish(claim, update)
        print(f"{version} has the weights of {first.version}", flush=True)
        return version

    def _publish(self, *updates: PolicyUpdate) -> None:
        producer = EventProducer(self._kafka, make_codec(), "benchmark")
        try:
            for update in updates:
                producer.publish_sync(POLICY_UPDATES, ALIAS, update)
        finally:
            producer.close()

    def _is_over(self, version: str) -> bool:
        """Whether the gate has decided on a version."""
        route = last_routes(self._kafka)[ALIAS]
        return version in [target.version for target in route.previous] or (
            [target.version for target in route.targets] == [version]
        )

    def _measured(self, models: Sequence[str]) -> dict[str, Any]:
        words = ["eval", "--json", f"--alias={ALIAS}", *(f"--model={model}" for model in models)]
        words += [f"--tasks={self._folder / 'tasks' / 'heldout.jsonl'}", *REWARD]
        return json.loads(fulgurite(self._environment, [*words, "--", *AGENT]))

    def _ledger(self, *, waits: bool) -> LedgerReport:
        """The balance. `waits`: once nothing is open, or after two minutes."""
        deadline = time.monotonic() + (_SETTLING_S if waits else 0.0)
        while True:
            found = read_books(self._kafka)
            is_open = any(term.startswith("open") for term in found.terms)
            if not is_open or time.monotonic() > deadline:
                return LedgerReport(
                    actions=found.actions, terms=found.terms, remainder=found.remainder
                )
            time.sleep(2)


def _both(
    one: Callable[[Conversation], None], other: Callable[[Conversation], None]
) -> Callable[[Conversation], None]:
    def call(conversation: Conversation) -> None:
        one(conversation)
        other(conversation)

    return call


def _once(place: int, gate: Command) -> Callable[[Conversation], None]:
    """Kill the gate when so many conversations have ended, and start it again."""
    ended = 0

    def call(_: Conversation) -> None:
        nonlocal ended
        ended += 1
        if ended == place:
            gate.kill()
            gate.start()
            print("the gate was killed, and started again", flush=True)

    return call


def run_part(options: argparse.Namespace, part: str, seed: int) -> Report:
    """The report of a part; runs it if there is none."""
    folder: Path = options.work / f"seed-{seed}"
    file = folder / f"{part}.json"
    if file.is_file():
        return msgspec.json.decode(file.read_bytes(), type=Report)
    again = part != "honest"
    if again:
        run_part(options, "honest", seed)
    data, kept = folder / "data", folder / "honest-data"
    if again and not kept.is_dir():
        raise SystemExit(f"{kept} is gone: remove {folder / 'honest.json'} and begin again")
    conversations = folder / f"{part}-conversations.json"
    if not conversations.is_file():
        empty_folder(data)
        if again:
            shutil.rmtree(data)
            subprocess.run(["cp", "-a", str(kept), str(data)], check=True)
    print(f"{part}, seed {seed}", flush=True)
    began = time.monotonic()
    settings = {**SETTINGS, "FULGURITE__ENGINE__SEED": str(seed)}
    stack = LocalStack(
        StackOptions(data=data, own_kafka=True, run=FILES / "run.toml", environment=settings)
    )
    with stack:
        print(f"the stack is up after {time.monotonic() - began:.0f} s", flush=True)
        run = Run(stack, folder, part, seed, options.held_out, again=again)
        if not conversations.is_file():
            conversations.write_bytes(msgspec.json.encode(run.hold(options.conversations)))
        report = run.measure(msgspec.json.decode(conversations.read_bytes(), type=Held))
    if not again:
        shutil.rmtree(kept, ignore_errors=True)
        data.rename(kept)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    print(f"{part}, seed {seed}: {report.seconds:.0f} s", flush=True)
    return report


def main() -> None:
    """Run all parts of all seeds and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--conversations", type=int, default=1200, help="in each part")
    parser.add_argument("--held-out", type=int, default=210)
    parser.add_argument("--work", type=Path, default=PROJECT / ".fulgurite" / "live")
    parser.add_argument("--out", type=Path, default=PROJECT / "benchmarks" / "live.md")
    options = parser.parse_args()
    reports = [
        (part, seed, run_part(options, part, seed))
        for seed in options.seeds
        for part in options.parts
    ]
    write_page(options.out, page(reports, options.held_out))


if __name__ == "__main__":
    main()
