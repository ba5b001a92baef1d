"""Lists every topic with its name, key, partitions and retention.

`fulgurite topics create` creates them. All group-keyed topics have the same number of partitions,
which never changes. The processors rely on it: a key is in the same partition of each topic.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from fulgurite.events import (
    AgentReward,
    AgentStatus,
    DeadLetter,
    Episode,
    Event,
    GroupClosed,
    LedgerEntry,
    LlmCall,
    PolicyApplied,
    PolicyRoute,
    PolicyUpdate,
    PromptScore,
    PromptTuning,
    PromptUpdate,
    SelectionDecision,
    Tombstone,
    Trajectory,
)

GROUP_PARTITIONS = 8
"""At most this many processes of a service share the load. Eight serve hundreds of calls a second.
"""

MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""Enough for a long episode with complete prompts: fifty calls of 16k tokens take 3 MiB."""

_DAY_MS = 24 * 3600 * 1000
_32_BITS = 0xFFFFFFFF


class Key(StrEnum):
    """The key of a topic's records."""

    group = "group"
    """Group id."""
    policy = "policy"
    """Policy name."""
    alias = "alias"
    """Model name agents ask for."""
    original = "original"
    """The key of the record that failed."""


class Topic(msgspec.Struct, frozen=True):
    """One topic and its settings."""

    name: str
    key: Key
    partitions: int
    cleanup: str
    """`delete` or `compact`."""
    retention_ms: int
    """Retention in milliseconds; -1: for ever."""
    carries: tuple[type[Event], ...]

    def configs(self, replication: int) -> dict[str, str]:
        """Make the topic's configuration for Kafka's admin API."""
        return {
            "cleanup.policy": self.cleanup,
            "retention.ms": str(self.retention_ms),
            "min.insync.replicas": str(min_insync(replication)),
            "unclean.leader.election.enable": "false",
            "compression.type": "zstd",
            "max.message.bytes": str(MAX_MESSAGE_BYTES),
            "message.timestamp.type": "CreateTime",
        }


def min_insync(replication: int) -> int:
    """The majority of the replicas: with three, one may be lost."""
    return replication // 2 + 1


_MONTH_MS = 30 * _DAY_MS

LLM_CALLS = Topic("llm.calls", Key.group, GROUP_PARTITIONS, "delete", _MONTH_MS, (LlmCall,))
AGENT_STATUS = Topic(
    "agent.status", Key.group, GROUP_PARTITIONS, "delete", _MONTH_MS, (AgentStatus,)
)
AGENT_REWARDS = Topic(
    "agent.rewards", Key.group, GROUP_PARTITIONS, "delete", _MONTH_MS, (AgentReward,)
)
EPISODES = Topic("episodes", Key.group, GROUP_PARTITIONS, "delete", _MONTH_MS, (Episode,))
TRAJECTORIES = Topic(
    "trajectories",
    Key.group,
    GROUP_PARTITIONS,
    "delete",
    _MONTH_MS,
    (Trajectory, Tombstone, GroupClosed),
)
POLICY_UPDATES = Topic("policy.updates", Key.policy, 1, "delete", -1, (PolicyUpdate,))
POLICY_ROUTES = Topic("policy.routes", Key.alias, 1, "compact", -1, (PolicyRoute,))
POLICY_APPLIED = Topic("policy.applied", Key.policy, 1, "delete", _MONTH_MS, (PolicyApplied,))
PROMPT_UPDATES = Topic(
    "prompt.updates", Key.alias, 1, "delete", -1, (PromptUpdate, PromptTuning, PromptScore)
)
SELECTION_DECISIONS = Topic("selection.decisions", Key.alias, 1, "delete", -1, (SelectionDecision,))
TRAINING_LEDGER = Topic(
    "training.ledger", Key.group, GROUP_PARTITIONS, "delete", -1, (LedgerEntry,)
)
DEAD_LETTERS = Topic("dead.letters", Key.original, GROUP_PARTITIONS, "delete", -1, (DeadLetter,))

TOPICS = (
    LLM_CALLS,
    AGENT_STATUS,
    AGENT_REWARDS,
    EPISODES,
    TRAJECTORIES,
    POLICY_UPDATES,
    POLICY_ROUTES,
    POLICY_APPLIED,
    PROMPT_UPDATES,
    SELECTION_DECISIONS,
    TRAINING_LEDGER,
    DEAD_LETTERS,
)


def topic_name(topic: Topic, prefix: str) -> str:
    """The name on the broker: the deployment's prefix and the topic's name."""
    return prefix + topic.name


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key, by Kafka's murmur2 partitioner."""
    return (_murmur2(key) & 0x7FFFFFFF) % partitions


def _murmur2(data: bytes) -> int:
    """Compute the 32-bit hash of Kafka's `Utils.murmur2`."""
    factor = 0x5BD1E995
    result = 0x9747B28C ^ len(data)
    whole = len(data) - len(data) % 4
    for at in range(0, whole, 4):
        word = int.from_bytes(data[at : at + 4], "little") * factor & _32_BITS
        result = result * factor & _32_BITS ^ (word ^ word >> 24) * factor & _32_BITS
    if whole < len(data):
        result = (result ^ int.from_bytes(data[whole:], "little")) * factor & _32_BITS
    result = (result ^ result >> 13) * factor & _32_BITS
    return result ^ result >> 15
