"""Follows `policy.updates` and `policy.routes` for each policy that a backend serves."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from fulgurite.avro.codec import Codec
from fulgurite.events import Event, PolicyRoute
from fulgurite.learning.target_version import TargetVersion
from fulgurite.topics import POLICY_ROUTES, POLICY_UPDATES
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_tail import TopicTail


class Followed:
    """The target version of one policy; `changed` is set when it may have changed.

    Used in the event loop only.
    """

    def __init__(self, policy: str) -> None:
        self.target = TargetVersion(policy)
        self.changed = asyncio.Event()
        self.routes = 0
        """Counts the routes read, so that a route to the same version is seen as well."""

    def apply(self, event: Event | None) -> None:
        """Apply the next event of either topic."""
        if self.target.apply(event):
            self.routes += isinstance(event, PolicyRoute)
            self.changed.set()


class LogWatch:
    """Follows several policies. Start it within a running event loop."""

    def __init__(self, kafka: KafkaSettings, codec: Codec, policies: Collection[str]) -> None:
        self.policies = {policy: Followed(policy) for policy in policies}
        self._tail = TopicTail(kafka, codec, (POLICY_UPDATES, POLICY_ROUTES), self._apply)
        self.caught_up = self._tail.caught_up
        self.start, self.close = self._tail.start, self._tail.close

    def _apply(self, event: Event | None) -> None:
        for followed in self.policies.values():
            followed.apply(event)
