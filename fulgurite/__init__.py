"""Exports the public names, for reward functions, notebooks and scripts that read the log.

A name is imported when it is first used. So a process that needs only `fulgurite.versions`, as the
plug-in in vLLM does, loads neither Avro nor NumPy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulgurite.avro.codec import Codec
    from fulgurite.episodes.view import EpisodeView
    from fulgurite.events import (
        AgentReward,
        AgentStatus,
        DeadLetter,
        Episode,
        LedgerEntry,
        LlmCall,
        PolicyApplied,
        PolicyRoute,
        PolicyUpdate,
        PromptUpdate,
        Tombstone,
        Trajectory,
    )
    from fulgurite.trajectories.building import Transition, iter_transitions

__all__ = [
    "AgentReward",
    "AgentStatus",
    "Codec",
    "DeadLetter",
    "Episode",
    "EpisodeView",
    "LedgerEntry",
    "LlmCall",
    "PolicyApplied",
    "PolicyRoute",
    "PolicyUpdate",
    "PromptUpdate",
    "Tombstone",
    "Trajectory",
    "Transition",
    "iter_transitions",
]

_PLACES = {
    "Codec": "fulgurite.avro.codec",
    "EpisodeView": "fulgurite.episodes.view",
    "Transition": "fulgurite.trajectories.building",
    "iter_transitions": "fulgurite.trajectories.building",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fulgurite' has no attribute {name!r}")
    return getattr(import_module(_PLACES.get(name, "fulgurite.events")), name)
