"""Everything a request needs, made once per process."""

from __future__ import annotations

import msgspec

from fulgurite.events import Sampling
from services.common.kafka.settings import KafkaSettings
from services.gateway.dialects.train_sampling import TrainSamplings
from services.gateway.identity.authenticator import Authenticator
from services.gateway.identity.declared_groups import DeclaredGroups
from services.gateway.identity.idempotency import Idempotency
from services.gateway.identity.keys import KeyRing
from services.gateway.identity.rollout_resolver import RolloutResolver
from services.gateway.identity.store import Store
from services.gateway.recording.recorded_responses import RecordedResponses
from services.gateway.recording.recorder import Recorder
from services.gateway.settings import GatewaySettings
from services.gateway.telemetry.metrics import Metrics
from services.gateway.telemetry.tracing import Tracer
from services.gateway.upstream.client import UpstreamClient
from services.gateway.upstream.dispatch import Dispatcher
from services.gateway.upstream.policies import PolicyTail
from services.gateway.upstream.route import Route


class GatewayContext(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a running gateway."""

    settings: GatewaySettings
    kafka: KafkaSettings
    routes: dict[str, Route]
    sampling: Sampling
    """What the engine uses where a request says nothing."""
    ring: KeyRing
    authenticator: Authenticator
    resolver: RolloutResolver
    groups: DeclaredGroups
    store: Store
    idempotency: Idempotency
    recorder: Recorder
    responses: RecordedResponses
    upstream: UpstreamClient
    dispatcher: Dispatcher
    train_sampling: TrainSamplings
    policies: PolicyTail
    metrics: Metrics
    tracer: Tracer
