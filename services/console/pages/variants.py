"""Names of the targets of routes, as routes, calls and commands name them."""

from __future__ import annotations

from fulgurite.events import RouteTarget
from fulgurite.selection.variants import name_variant
from services.console.pages.reading import Row


def variant_of(target: Row) -> str:
    """The name of a target, given as a row or as a struct of the table `routes`."""
    return name_variant(
        RouteTarget(
            policy=target["policy"] or "",
            version=target["version"],
            upstream=target["upstream"],
            weight=target["weight"],
            parameters=target["parameters"] or {},
            prompt=target["prompt"],
        )
    )


def shown_variant(target: Row) -> str:
    """The name for people, who want to know which version a policy's name stands for."""
    is_newest = target["version"] is None and target["upstream"] is None
    return f"{variant_of(target)} (newest)" if is_newest else variant_of(target)
