"""Which recorded response an output item is of, so that an `item_reference` needs no
`previous_response_id`.

The index is in the store that gateways share, for a day. Only the key that got an item finds it.
The index is optional: the agent can always send the item itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, cast

from services.gateway.identity.store import Store
from services.gateway.identity.store_patience import StorePatience

_TTL_S = 24 * 3600
_MAX_ITEMS = 1000
"""Items that one request may refer to, and that one response is indexed with."""


class ItemIndex:
    """Maps a key's owner and an item's id to a call's id."""

    def __init__(self, store: Store, patience: StorePatience) -> None:
        self._store = store
        self._patience = patience

    async def remember(self, owner: str, call_id: str, output: Sequence[Any]) -> None:
        """Index the items of a call's output. Call it before the agent has the complete answer."""
        for item in output[:_MAX_ITEMS]:
            item_id = cast("dict[str, Any]", item).get("id") if isinstance(item, dict) else None
            if isinstance(item_id, str):
                key = _key(owner, item_id)
                await self._patience.ask(
                    lambda key=key: self._store.put(key, call_id.encode(), _TTL_S)
                )

    async def find(self, owner: str, item_ids: Sequence[str]) -> list[str]:
        """The ids of the calls that these items are of, as far as they are known."""
        keys = [_key(owner, item_id) for item_id in dict.fromkeys(item_ids)]
        found = await self._patience.ask(lambda: self._store.get_many(keys[:_MAX_ITEMS]))
        return list(dict.fromkeys(value.decode() for value in found or () if value is not None))


def _key(owner: str, item_id: str) -> str:
    named = hashlib.sha256(f"{owner}\0{item_id}".encode("utf-8", "replace"))
    return f"item:{named.hexdigest()}"
