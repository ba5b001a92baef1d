"""Waits until backends serve a route, as appliers report it in `policy.applied`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Self

from confluent_kafka import TopicPartition
from rich.console import Console

from fulgurite.enums import ApplyOutcome
from fulgurite.events import PolicyApplied, RouteTarget
from fulgurite.topics import POLICY_APPLIED
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import make_consumer, read_message, read_until, watermarks
from services.common.kafka.settings import KafkaSettings
from services.common.policies.route_targets import Published
from services.common.runtime.terminal import make_console, plain
from services.gateway.upstream.policies import PolicyView


class RouteEffect:
    """Follows `policy.applied`. Enter it before the route is written, to miss no event."""

    def __init__(
        self, kafka: KafkaSettings, published: Published, console: Console | None = None
    ) -> None:
        """`console`: where it prints; None: standard output."""
        self._console = console or make_console()
        self._published = published
        self._view = PolicyView(published.adapters())
        self._failed: dict[tuple[str, str], str] = {}
        """Errors since the start, by backend and version."""
        self._backends: dict[str, set[str]] = {}
        self._codec = make_codec()
        self._consumer = make_consumer(kafka)
        self._name = kafka.topic(POLICY_APPLIED)

    def __enter__(self) -> Self:
        low, high = watermarks(self._consumer, TopicPartition(self._name, 0))
        self._consumer.assign([TopicPartition(self._name, 0, low)])
        for message in read_until(self._consumer, {(self._name, 0): high} if high > low else {}):
            self._apply(read_message(message, self._codec).event)
        self._failed.clear()
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def wait(self, targets: Sequence[RouteTarget], wait_s: float) -> bool:
        """Wait, and print which backends serve each target. False if one is served by no backend.

        True at once if `wait_s` is 0 or no applier has ever reported. Upstreams load nothing.
        """
        wanted = [
            (target.policy, target.version or self._newest(target.policy))
            for target in targets
            if target.weight > 0 and target.upstream is None
        ]
        backends = set[str]().union(*(self._backends.get(policy, set()) for policy, _ in wanted))
        console = self._console
        if not wanted:
            console.print("written; gateways follow it within a second.")
            return True
        if not backends or not wait_s:
            why = "not waited for" if backends else "no applier has reported yet"
            console.print(f"written; {why}. `fulgurite status` shows what is served.")
            return True
        deadline = time.monotonic() + wait_s
        while not self._settled(wanted, backends) and (left := deadline - time.monotonic()) > 0:
            message = self._consumer.poll(left)
            if message is not None and message.error() is None:
                self._apply(read_message(message, self._codec).event)
        fine = True
        for policy, version in wanted:
            holders = [
                backend
                for backend in sorted(backends)
                if version in self._view.loaded(policy, backend)
            ]
            fine = fine and bool(holders)
            console.print(
                f"{version}: served by {', '.join(map(plain, holders)) or '[red]no backend[/red]'}"
            )
            for backend in sorted(backends.difference(holders)):
                split = len(wanted) > 1
                reason = self._why_not(policy, version, backend, split=split, wait_s=wait_s)
                console.print(plain(f"  {reason}"))
        return fine

    def _why_not(
        self, policy: str, version: str, backend: str, *, split: bool, wait_s: float
    ) -> str:
        serves = ", ".join(sorted(self._view.loaded(policy, backend))) or "nothing"
        failed = self._failed.get((backend, version))
        if failed is not None:
            return f"{backend} cannot serve {version}: {failed}. It still serves {serves}."
        if split:
            return (
                f"{backend} serves {serves}: of full weights a backend holds one version (see "
                "FULGURITE_APPLIER_CANARY)"
            )
        return (
            f"{backend} still serves {serves} after {wait_s:g} s: is its applier running? "
            "`fulgurite status` shows whether it comes"
        )

    def _settled(self, wanted: Sequence[tuple[str, str]], backends: set[str]) -> bool:
        def done(policy: str, version: str, backend: str) -> bool:
            return (
                version in self._view.loaded(policy, backend) or (backend, version) in self._failed
            )

        # A split route needs one backend for each version, a single version all of them.
        enough = any if len(wanted) > 1 else all
        return all(
            enough(done(policy, version, backend) for backend in backends)
            for policy, version in wanted
        )

    def _apply(self, event: object) -> None:
        if isinstance(event, PolicyApplied):
            self._view.apply(event)
            self._backends.setdefault(event.policy, set()).add(event.backend)
            if event.outcome is ApplyOutcome.failed:
                self._failed[event.backend, event.version] = event.error or "no error was reported"
            else:
                self._failed.pop((event.backend, event.version), None)

    def _newest(self, policy: str) -> str:
        fold = self._published.folds.get(policy)
        return str(fold.version()) if fold is not None else f"{policy}@0.0"
