"""The Faust app of a stream worker: what is set otherwise than Faust's defaults, and why.

What is replaced in Faust is in `faust_overrides`.
"""

from __future__ import annotations

import ssl
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import faust

from fulgurite.topics import Topic
from services.common.kafka.settings import KafkaSettings

if TYPE_CHECKING:
    from services.common.streaming.worker import StreamSettings


def make_app(group_id: str, kafka: KafkaSettings, settings: StreamSettings) -> Any:
    """Return a Faust app without agents. Its consumer group is `group_id`."""
    return cast(Any, faust).App(
        group_id,
        broker=[f"kafka://{server.strip()}" for server in kafka.bootstrap_servers.split(",")],
        broker_credentials=_credentials(kafka),
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=settings.session_timeout_s / 4,
        broker_commit_interval=settings.commit_interval_s,
        # Static membership: a quick restart causes no rebalance.
        consumer_group_instance_id=f"{group_id}-{settings.instance}",
        consumer_auto_offset_reset="earliest",
        processing_guarantee="at_least_once",
        stream_wait_empty=False,
        # Faust keeps co-partitioned topics together only with its own assignor. Since
        # https://github.com/faust-streaming/faust/pull/402 it uses round-robin unless standby
        # replicas are set; https://github.com/faust-streaming/faust/pull/658 would mend that for
        # static membership. There are no tables, hence no standbys.
        table_standby_replicas=1,
        # `fulgurite topics create` makes the topics.
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
        autodiscover=False,
        # Records reach the processors as bytes: one that cannot be decoded is a dead letter.
        key_serializer="raw",
        value_serializer="raw",
        datadir=str(
            Path(tempfile.gettempdir()) / f"fulgurite-faust-{group_id}-{settings.instance}"
        ),
    )


def raw_topic(app: Any, kafka: KafkaSettings, topic: Topic) -> Any:
    """Return the Faust topic, with keys and values as bytes."""
    return app.topic(
        kafka.topic(topic),
        key_type=bytes,
        value_type=bytes,
        key_serializer="raw",
        value_serializer="raw",
    )


def _credentials(kafka: KafkaSettings) -> Any:
    """Return the deployment's security settings as Faust's."""
    context = (
        ssl.create_default_context(cafile=kafka.ssl_ca_location)
        if "SSL" in kafka.security_protocol
        else None
    )
    if kafka.security_protocol.startswith("SASL"):
        password = kafka.sasl_password.get_secret_value() if kafka.sasl_password else None
        return cast(Any, faust).SASLCredentials(
            username=kafka.sasl_username,
            password=password,
            ssl_context=context,
            mechanism=kafka.sasl_mechanism,
        )
    return cast(Any, faust).SSLCredentials(context=context) if context else None
