"""Services that write an alias's route. An alias has one author of its shares."""

from __future__ import annotations

GATE = "fulgurite gate"
"""Author of a gate's routes."""
EVALUATION = "fulgurite eval"
"""Author of the routes that hold a version at the backends while it is evaluated."""
