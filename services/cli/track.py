"""Defines the command `fulgurite track`: copies the metrics of versions to a tracker.

What the ledger says of a version is complete when the next version is published: a learner writes
its ledger entries between the two.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from fulgurite.enums import UpdateKind
from fulgurite.events import LedgerEntry, PolicyUpdate
from fulgurite.topics import POLICY_UPDATES, TRAINING_LEDGER
from services.cli.errors import report_errors
from services.cli.ledger_terms import LedgerTerms
from services.cli.trackers import TRACKERS, Run
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import Record
from services.common.kafka.log_follower import Followed, LogFollower
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import topic_id
from services.common.runtime.terminal import make_console
from services.replay.errors import BadArgument


def track(
    to: Annotated[
        str, typer.Option("--to", metavar="TRACKER", help=f"One of {', '.join(TRACKERS)}.")
    ],
    folder: Annotated[
        Path, typer.Option("--dir", help="Folder for the tracker's files and for how far it got.")
    ] = Path(".fulgurite/track"),
    project: Annotated[
        str, typer.Option(metavar="NAME", help="Project, or experiment, in the tracker.")
    ] = "fulgurite",
    policy: Annotated[
        str | None, typer.Option(metavar="POLICY", help="Only this policy; without it, all.")
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Stop when everything in the log is copied.")
    ] = False,
) -> None:
    """Copy the metrics of every version to TensorBoard, W&B, MLflow or trackio until stopped.

    Reads `policy.updates`, so that it may start late and catches up; each policy is a run. Once the
    next version is there, what `training.ledger` says of a version follows: `ledger/trained`,
    `ledger/filtered/REASON`, `ledger/stale`, in actions. What was copied is noted in the folder, so
    that a restart goes on from there. Needs the tracker's own library; W&B, MLflow and trackio read
    their own variables too (WANDB_MODE, MLFLOW_TRACKING_URI).
    Exits 1 for a tracker that is unknown or not installed, 2 if the log cannot be read.

    Example: `fulgurite track --to tensorboard --dir runs`
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stop.set())
    with report_errors("track"):
        kafka, codec = answering(KafkaSettings()), make_codec()
        with (
            LogFollower(kafka, codec, [POLICY_UPDATES]) as updates,
            LogFollower(kafka, codec, [TRAINING_LEDGER]) as ledger,
        ):
            tracking = Tracking(to, folder, project, policy, kafka, ledger.catch_up)
            try:
                for _, record in updates.records(stop, once=once):
                    tracking.apply(record)
            finally:
                tracking.close()
        make_console(stderr=True).print(f"versions copied to {to}: {tracking.count}")


class Tracking:
    """Copies updates to the runs of a tracker, each once. Raises BadArgument."""

    def __init__(
        self,
        to: str,
        folder: Path,
        project: str,
        policy: str | None,
        kafka: KafkaSettings,
        new_entries: Callable[[], Iterable[Followed]],
    ) -> None:
        """`new_entries` returns what is new in `training.ledger`."""
        if to not in TRACKERS:
            raise BadArgument(f"--to {to} is not known; there are {', '.join(TRACKERS)}")
        self._make = TRACKERS[to]
        self._folder = folder
        self._project = project
        self._policy = policy
        folder.mkdir(parents=True, exist_ok=True)
        self._noted = folder / f"{to}.json"
        self._topic = topic_id(kafka, kafka.topic(POLICY_UPDATES))
        self._done = self._read_done()
        self._runs: dict[str, Run] = {}
        self._configs: dict[str, dict[str, Any]] = {}
        self._new_entries = new_entries
        self._terms = LedgerTerms()
        self._newest: dict[str, PolicyUpdate] = {}
        """By policy, the version whose ledger entries are still to be copied."""
        self.count = 0

    def apply(self, record: Record) -> None:
        """Copy a record of `policy.updates` unless it was copied before."""
        update = record.event
        if not isinstance(update, PolicyUpdate) or self._policy not in (None, update.policy):
            return
        if update.kind is UpdateKind.claim:
            self._configs[update.policy] = json.loads(update.config or "{}")
        if update.kind is not UpdateKind.update:
            return
        before = self._newest.get(update.policy)
        self._newest[update.policy] = update
        # A learner that resumes publishes its last version again.
        terms = (
            self._take_terms(before, update)
            if before is not None and before.version != update.version
            else {}
        )
        if record.offset < self._done.get(update.policy, 0):
            return
        run = self._run_of(update.policy)
        if before is not None and terms:
            run.log(before.step, before.event_time, terms)
        run.log(update.step, update.event_time, update.metrics)
        self.count += 1
        self._done[update.policy] = record.offset + 1
        self._note_done()

    def close(self) -> None:
        """End the runs."""
        for run in self._runs.values():
            run.close()

    def _take_terms(self, version: PolicyUpdate, following: PolicyUpdate) -> dict[str, float]:
        for _, record in self._new_entries():
            entry = record.event
            if isinstance(entry, LedgerEntry) and self._policy in (None, entry.policy):
                self._terms.add(entry)
        return self._terms.take(version, following.event_time)

    def _run_of(self, policy: str) -> Run:
        if policy not in self._runs:
            config = self._configs.get(policy, {})
            self._runs[policy] = self._make(self._folder, policy, self._project, config)
        return self._runs[policy]

    def _read_done(self) -> dict[str, int]:
        """By policy, the offset to go on from; none if the topic is another one now."""
        try:
            noted = msgspec.json.decode(self._noted.read_bytes(), type=_Noted)
        except FileNotFoundError:
            return {}
        except msgspec.DecodeError as error:
            raise BadArgument(
                f"{self._noted} is damaged: {error}. Remove it to copy everything again"
            ) from error
        return noted.done if noted.topic_id == self._topic else {}

    def _note_done(self) -> None:
        part = self._noted.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(_Noted(self._topic, self._done)))
        part.replace(self._noted)


class _Noted(msgspec.Struct, frozen=True):
    """How far each policy is copied."""

    topic_id: str
    done: dict[str, int]
