"""A rollout in a table: the end of its id, which leads to its timeline."""

from __future__ import annotations

from services.console.pages.address import link
from services.console.pages.blocks import Cell


def rollout_cell(rollout_id: str) -> Cell:
    """A cell that leads to a rollout; its whole id is shown where the pointer rests."""
    return Cell(tail(rollout_id), link("/timeline", rollout=rollout_id), note=rollout_id)


def tail(rollout_id: str) -> str:
    """The end of an id, by which people tell rollouts apart."""
    return f"…{rollout_id[-10:]}" if len(rollout_id) > 12 else rollout_id
