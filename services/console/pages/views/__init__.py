"""The views, one file each, in the order of the navigation."""

from __future__ import annotations

from services.console.pages.view import View
from services.console.pages.views import funnel, group, ledger, now, rollouts, runs, step, timeline

VIEWS: tuple[View, ...] = (
    now.VIEW,
    runs.VIEW,
    step.VIEW,
    funnel.VIEW,
    ledger.VIEW,
    rollouts.VIEW,
    timeline.VIEW,
    group.VIEW,
)
