"""Frozen events: the Python side of the Avro schemas in `schemas/avro/`.

The schemas are the source; a test holds both together. There is one module for each family of
topics, and all names can be imported from here. Token arrays are packed bytes (see
`fulgurite.tokens`), times are Unix milliseconds, ids are those of `fulgurite.ids`. A JSON payload
is kept as the string that was sent, so that nothing is lost by parsing it.
"""

from __future__ import annotations

from fulgurite.events.base import Event, EventStruct
from fulgurite.events.calls import Choice, ClaimCheck, LlmCall, ParentRef, Sampling
from fulgurite.events.dead_letters import DeadLetter
from fulgurite.events.episodes import Episode
from fulgurite.events.ledger import LedgerEntry
from fulgurite.events.policies import (
    Artifact,
    PolicyApplied,
    PolicyRoute,
    PolicyUpdate,
    Position,
    Probe,
    RouteTarget,
)
from fulgurite.events.prompts import (
    Demonstration,
    DemonstrationCall,
    PromptCost,
    PromptScore,
    PromptTuning,
    PromptUpdate,
)
from fulgurite.events.rollouts import AgentReward, AgentStatus, Declaration
from fulgurite.events.selection import SelectionDecision, VariantDifference, VariantReport
from fulgurite.events.trajectories import Action, GroupClosed, Tombstone, Trajectory

__all__ = [
    "EVENT_TYPES",
    "Action",
    "AgentReward",
    "AgentStatus",
    "Artifact",
    "Choice",
    "ClaimCheck",
    "DeadLetter",
    "Declaration",
    "Demonstration",
    "DemonstrationCall",
    "Episode",
    "Event",
    "EventStruct",
    "GroupClosed",
    "LedgerEntry",
    "LlmCall",
    "ParentRef",
    "PolicyApplied",
    "PolicyRoute",
    "PolicyUpdate",
    "Position",
    "Probe",
    "PromptCost",
    "PromptScore",
    "PromptTuning",
    "PromptUpdate",
    "RouteTarget",
    "Sampling",
    "SelectionDecision",
    "Tombstone",
    "Trajectory",
    "VariantDifference",
    "VariantReport",
]

EVENT_TYPES: tuple[type[Event], ...] = (
    LlmCall,
    AgentStatus,
    AgentReward,
    Episode,
    Trajectory,
    Tombstone,
    GroupClosed,
    PolicyUpdate,
    PolicyRoute,
    PolicyApplied,
    PromptUpdate,
    PromptTuning,
    PromptScore,
    SelectionDecision,
    LedgerEntry,
    DeadLetter,
)
"""Every event type; the schema of `LlmCall` is `schemas/avro/llm_call.avsc`, and so on."""
