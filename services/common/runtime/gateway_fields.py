"""Names the request fields that only this gateway knows, for it and for those that send them."""

from __future__ import annotations

DICTATE = "fulgurite_dictate"
"""In a chat: the answer that the model shall give, a message of the assistant."""
