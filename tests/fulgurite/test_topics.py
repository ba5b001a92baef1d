"""The table of topics: what the processors and the promises rely on."""

from __future__ import annotations

import pytest

from fulgurite.topics import (
    EPISODES,
    GROUP_PARTITIONS,
    LLM_CALLS,
    TOPICS,
    Key,
    Topic,
    min_insync,
    partition_of,
    topic_name,
)

every_topic = pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)


def test_group_keyed_topics_are_co_partitioned() -> None:
    assert {topic.partitions for topic in TOPICS if topic.key is Key.group} == {GROUP_PARTITIONS}


def test_names_are_unique_and_prefixed() -> None:
    assert len({topic.name for topic in TOPICS}) == len(TOPICS)
    assert topic_name(EPISODES, "prod.") == "prod.episodes"


@pytest.mark.parametrize(("replication", "least"), [(1, 1), (2, 2), (3, 2), (5, 3)])
def test_a_majority_acknowledges(replication: int, least: int) -> None:
    assert min_insync(replication) == least
    assert LLM_CALLS.configs(replication)["min.insync.replicas"] == str(least)


@every_topic
def test_no_topic_may_elect_an_unclean_leader(topic: Topic) -> None:
    configs = topic.configs(3)
    assert configs["unclean.leader.election.enable"] == "false"
    assert configs["compression.type"] == "zstd"
    assert configs["cleanup.policy"] in ("delete", "compact")


@every_topic
def test_what_accounts_for_training_is_kept_for_ever(topic: Topic) -> None:
    if topic.name in (
        "policy.updates",
        "policy.routes",
        "prompt.updates",
        "training.ledger",
        "dead.letters",
    ):
        assert topic.configs(1)["retention.ms"] == "-1"


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ],
)
def test_a_key_lies_where_kafkas_own_partitioner_puts_it(key: str, hashed: int) -> None:
    """The hashes are those of Kafka's own tests."""
    for partitions in (8, 1 << 31):
        assert partition_of(key.encode(), partitions) == (hashed & 0x7FFFFFFF) % partitions
