"""The views, one file each, in the order of the navigation."""

from __future__ import annotations

from services.console.pages.view import View
from services.console.pages.views import now

VIEWS: tuple[View, ...] = (now.VIEW,)
