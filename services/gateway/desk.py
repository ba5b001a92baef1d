"""Everything a request needs, made once per process."""

from __future__ import annotations

import msgspec

from fulgurite.events import Sampling
from services.gateway.dispatch import Dispatcher
from services.gateway.idempotency import Idempotency, Store
from services.gateway.identity import Doorkeeper, Identifier
from services.gateway.keys import KeyRing
from services.gateway.metrics import Metrics
from services.gateway.policies import PolicyTail
from services.gateway.recorded_responses import RecordedResponses
from services.gateway.recorder import Recorder
from services.gateway.registry import GroupRegistry
from services.gateway.settings import GatewaySettings, Route
from services.gateway.tracing import Tracer
from services.gateway.train_sampling import TrainSamplings
from services.gateway.vllm_client import UpstreamClient
from services.kafka import KafkaSettings


class Desk(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a running gateway."""

    settings: GatewaySettings
    kafka: KafkaSettings
    routes: dict[str, Route]
    sampling: Sampling
    """What the engine uses where a request says nothing."""
    ring: KeyRing
    doorkeeper: Doorkeeper
    identifier: Identifier
    registry: GroupRegistry
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
