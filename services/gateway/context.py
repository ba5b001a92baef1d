"""The parts of a running gateway, made once per process, opened and closed in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.events import Sampling
from services.common.kafka.codec import make_codec
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.runtime import logs
from services.common.runtime.clock import now_ms
from services.gateway.dialects.answer_limits import AnswerLimits
from services.gateway.dialects.train_sampling import TrainSamplings
from services.gateway.identity.authenticator import Authenticator, plain_owner
from services.gateway.identity.conversation_matching import MEMORY_LIMIT, ConversationMatcher
from services.gateway.identity.declared_groups import DeclaredGroups
from services.gateway.identity.harnesses import Harnesses
from services.gateway.identity.idempotency import (
    STATUSES_IN_MEMORY,
    Idempotency,
    status_idempotency,
)
from services.gateway.identity.keys import KeyRing
from services.gateway.identity.live_training import ROLLOUTS_IN_MEMORY, LiveTraining
from services.gateway.identity.roles import Roles, role_aliases
from services.gateway.identity.rollout_resolver import RolloutResolver
from services.gateway.identity.store import MemoryStore, RedisStore, Store
from services.gateway.recording.call_recorder import CallRecorder
from services.gateway.recording.call_search import CallSearch
from services.gateway.recording.recorded_calls import RecordedCalls
from services.gateway.recording.recorded_responses import PLACES_IN_MEMORY, RecordedResponses
from services.gateway.recording.recorder import Recorder
from services.gateway.recording.rollout_search import RolloutSearch
from services.gateway.settings import GatewaySettings
from services.gateway.telemetry.metrics import Metrics
from services.gateway.telemetry.tracing import Tracer, open_tracer
from services.gateway.telemetry.version_metric import ServedVersions
from services.gateway.upstream.admission import Admission
from services.gateway.upstream.client import UpstreamClient
from services.gateway.upstream.continuation import ANSWERS_IN_MEMORY, Continuation
from services.gateway.upstream.dictation import Dictation
from services.gateway.upstream.dispatch import Dispatcher
from services.gateway.upstream.policies import PolicyTail
from services.gateway.upstream.prompts import SESSIONS_IN_MEMORY, Prompts
from services.gateway.upstream.route import Route
from services.gateway.upstream.routing import Router

log = logs.get(__name__)

_BURST_LINGER_MS = 0.5
"""How long the producer gathers events. Each agent waits for its event, and a request to Kafka
costs as much as an event: a busy gateway sends some ten events with each.
"""


class GatewayContext(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a running gateway."""

    settings: GatewaySettings
    kafka: KafkaSettings
    routes: dict[str, Route]
    sampling: Sampling
    """What the engine uses where a request does not say."""
    ring: KeyRing
    authenticator: Authenticator
    resolver: RolloutResolver
    roles: Roles
    harnesses: Harnesses
    groups: DeclaredGroups
    live_training: LiveTraining
    store: Store
    idempotency: Idempotency
    status_idempotency: Idempotency
    """Of statuses, of which agents may send many."""
    recorder: Recorder
    call_recorder: CallRecorder
    recorded_calls: RecordedCalls
    responses: RecordedResponses
    upstream: UpstreamClient
    dispatcher: Dispatcher
    answer_limits: AnswerLimits
    train_sampling: TrainSamplings
    policies: PolicyTail
    prompts: Prompts
    metrics: Metrics
    tracer: Tracer


@asynccontextmanager
async def open_context(
    settings: GatewaySettings, kafka: KafkaSettings
) -> AsyncGenerator[GatewayContext]:
    """Make and start every part; on exit close them in an order that loses no event. Raises
    ValueError for settings that contradict each other.
    """
    codec = make_codec()
    producer = EventProducer(
        kafka,
        codec,
        "gateway",
        delivery_timeout_s=settings.ack_timeout_s,
        burst_linger_ms=_BURST_LINGER_MS,
    )
    context = make_context(settings, kafka, codec, producer, UpstreamClient(settings))
    context.metrics.registry.register(ServedVersions(context.policies.view))
    context.recorder.start()
    try:
        await asyncio.gather(context.policies.start(), context.prompts.start())
        yield context
    finally:
        context.responses.close()
        context.recorded_calls.close()
        await context.upstream.close()
        unacknowledged = await context.recorder.close()
        context.policies.close()
        context.prompts.close()
        await context.store.close()
        await asyncio.to_thread(context.tracer.close)
        log.info("gateway stopped", unacknowledged=unacknowledged)


def make_context(
    settings: GatewaySettings,
    kafka: KafkaSettings,
    codec: Codec,
    producer: EventProducer,
    upstream: UpstreamClient,
) -> GatewayContext:
    """Make every part, around what talks to Kafka and to model servers; start none."""
    ring = KeyRing.parse(settings.signing_keys.get_secret_value())
    routes = settings.routes()
    metrics = Metrics()
    store: Store = (
        RedisStore(settings.redis_url.get_secret_value()) if settings.redis_url else MemoryStore()
    )
    groups = DeclaredGroups(store, now_ms())
    recorder = Recorder(producer, kafka, codec, settings, metrics)
    policies = PolicyTail(kafka, codec, settings.adapters())
    resolver = RolloutResolver(
        ring,
        groups,
        role_aliases({alias: route.policy for alias, route in routes.items()}),
        _matcher(settings, ring, store, metrics),
    )
    router = Router(
        routes, settings.backends(), settings.adapters(), settings.policy, policies.view
    )
    responses = RecordedResponses(
        resolver,
        _shared_or_own(settings, store, PLACES_IN_MEMORY),
        CallSearch(kafka, codec),
        recorder.problem,
        settings.call_body_limits(),
        metrics,
    )
    recorded_calls = RecordedCalls(RolloutSearch(kafka, codec), recorder.problem, metrics)
    continuation = Continuation(
        settings.continued(), _shared_or_own(settings, store, ANSWERS_IN_MEMORY), upstream
    )
    return GatewayContext(
        settings=settings,
        kafka=kafka,
        routes=routes,
        sampling=settings.default_sampling.sampling(),
        ring=ring,
        authenticator=Authenticator(
            ring,
            settings.admin_key.get_secret_value() if settings.admin_key else None,
            settings.plain_keys(),
            settings.allow_any_key,
            settings.operations_key.get_secret_value() if settings.operations_key else None,
        ),
        resolver=resolver,
        roles=Roles(settings.roles),
        harnesses=Harnesses(settings.harnesses),
        groups=groups,
        live_training=LiveTraining(
            settings.live_trained(),
            frozenset(map(plain_owner, settings.keys_left_out())),
            settings.subjects_left_out(),
            settings.train_live_quota,
            _shared_or_own(settings, store, ROLLOUTS_IN_MEMORY),
            metrics,
        ),
        store=store,
        idempotency=Idempotency(store),
        status_idempotency=status_idempotency(_shared_or_own(settings, store, STATUSES_IN_MEMORY)),
        recorder=recorder,
        call_recorder=CallRecorder(
            recorder,
            recorded_calls,
            responses,
            resolver,
            continuation,
            metrics,
            settings.logprobs_mode,
        ),
        recorded_calls=recorded_calls,
        responses=responses,
        upstream=upstream,
        dispatcher=Dispatcher(
            router,
            Admission(settings, metrics),
            upstream,
            continuation,
            Dictation(upstream),
            metrics,
        ),
        answer_limits=AnswerLimits(settings.max_tokens),
        train_sampling=TrainSamplings(settings.train_sampling),
        policies=policies,
        prompts=Prompts(kafka, codec, _shared_or_own(settings, store, SESSIONS_IN_MEMORY)),
        metrics=metrics,
        tracer=open_tracer(),
    )


def _shared_or_own(settings: GatewaySettings, store: Store, limit: int) -> Store:
    """Redis; without it a memory of its own, so that many small entries do not push declared groups
    and idempotency keys of rewards out of the shared one.
    """
    return store if settings.redis_url else MemoryStore(limit=limit)


def _matcher(
    settings: GatewaySettings, ring: KeyRing, store: Store, metrics: Metrics
) -> ConversationMatcher | None:
    """None where FULGURITE_INFER_CONVERSATIONS is off."""
    if not settings.infer_conversations:
        return None
    memory = _shared_or_own(settings, store, MEMORY_LIMIT)
    return ConversationMatcher(memory, ring.signing_secret, settings.conversation_ttl_s, metrics)
