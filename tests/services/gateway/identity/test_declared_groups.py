"""What gateways remember together of groups and ids."""

from __future__ import annotations

from services.gateway.identity.declared_groups import DeclaredGroups
from services.gateway.identity.store import MemoryStore


async def test_the_first_gateway_of_a_store_says_since_when_ids_have_tags() -> None:
    store = MemoryStore()
    assert await DeclaredGroups(store, 1_000).tagged_since() == 1_000
    restarted = DeclaredGroups(store, 2_000)
    assert [await restarted.tagged_since() for _ in range(2)] == [1_000, 1_000]
