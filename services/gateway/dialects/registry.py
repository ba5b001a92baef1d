"""Every model API that the gateway speaks: a new one is a file here and a line below."""

from __future__ import annotations

from services.gateway.dialects.chat import Chat
from services.gateway.dialects.completions import Completions
from services.gateway.dialects.count_tokens import CountTokens
from services.gateway.dialects.dialect import Dialect
from services.gateway.dialects.embeddings import Embeddings
from services.gateway.dialects.messages import Messages
from services.gateway.dialects.responses import Responses

DIALECTS: tuple[Dialect, ...] = (
    Chat(),
    Responses(),
    Messages(),
    Completions(),
    Embeddings(),
    CountTokens(),
)
