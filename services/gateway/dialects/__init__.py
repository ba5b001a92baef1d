"""Every model API that the gateway speaks: a new one is a file here and a line below."""

from __future__ import annotations

from services.gateway.dialect import Dialect
from services.gateway.dialects.chat import Chat

DIALECTS: tuple[Dialect, ...] = (Chat(),)
