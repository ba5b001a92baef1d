"""A follower of topics on a real log."""

from __future__ import annotations

import pytest

from fulgurite.avro.codec import Codec
from fulgurite.topics import AGENT_REWARDS, AGENT_STATUS
from services.common.kafka.log_follower import LogFollower
from services.common.kafka.producer import EventProducer
from services.common.kafka.topic_admin import create_topics
from services.local_stack.kafka_local import LocalKafka
from tests.integration.gateway_process import kafka_settings
from tests.synthetic import group_id, make_declared, make_reward

pytestmark = pytest.mark.engine


def test_each_topic_begins_where_it_is_told(kafka: LocalKafka, topic_prefix: str) -> None:
    settings, codec = kafka_settings(kafka.bootstrap_servers, topic_prefix), Codec()
    create_topics(settings)
    producer = EventProducer(settings, codec, "test")
    status, early, late = make_declared(1), make_reward(1, 0), make_reward(1, 1)
    producer.publish_sync(AGENT_STATUS, group_id(1), status)
    written = producer.publish_sync(AGENT_REWARDS, group_id(1), early)
    topics = (AGENT_STATUS, AGENT_REWARDS)
    future = {AGENT_REWARDS: 10**14}
    with LogFollower(settings, codec, topics, since_ms=future) as follower:
        assert [found.record.event for found in follower.catch_up()] == [status]
        producer.publish_sync(AGENT_REWARDS, group_id(1), late)
        assert [found.record.event for found in follower.catch_up()] == [late]
    with LogFollower(settings, codec, topics) as follower:
        assert len(list(follower.catch_up())) == 3
    assert written.offset == 0
    assert producer.close() == 0
