"""The views, one file each, in the order of the navigation."""

from __future__ import annotations

from services.console.pages.view import View
from services.console.pages.views import (
    agents,
    dead_letters,
    feedback,
    funnel,
    group,
    ledger,
    now,
    prompts,
    rewards,
    rollouts,
    routes,
    runs,
    step,
    timeline,
    versions,
)

VIEWS: tuple[View, ...] = (
    now.VIEW,
    runs.VIEW,
    step.VIEW,
    funnel.VIEW,
    ledger.VIEW,
    rewards.VIEW,
    versions.VIEW,
    rollouts.VIEW,
    timeline.VIEW,
    group.VIEW,
    agents.VIEW,
    feedback.VIEW,
    routes.VIEW,
    prompts.VIEW,
    dead_letters.VIEW,
)
