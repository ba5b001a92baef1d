"""The way in: calls go straight to their endpoint, everything else to the FastAPI app.

The app's middleware and routing would cost a call as much as everything done for it here. What they would do for it is done all the same:
the endpoint bounds the body itself, and an unexpected error is answered and logged.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send


class FrontDoor:
    """Raw ASGI around the app. `hot` is filled when the app has started."""

    def __init__(self, app: ASGIApp, hot: Mapping[str, ASGIApp]) -> None:
        self._app = app
        self._hot = hot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """By exact path; a path that names a rollout takes the app's routing."""
        hot = self._hot.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        await (hot or self._app)(scope, receive, send)


def settle_garbage() -> None:
    """Take what lives as long as the process out of the collector's sight, and let it look less often at the rest.

    A call makes a thousand short-lived objects: at Python's defaults each call would pay for a walk over many that never die.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
