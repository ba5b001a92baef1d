"""Who calls, and which rollout it is: key, path, header, session, or a rollout of its own."""

from __future__ import annotations

import pytest

from fulgurite.ids import mint_group, rollout_of
from fulgurite.kinds import Identity, Mode
from services.gateway.idempotency import MemoryStore
from services.gateway.identity import Caller, Doorkeeper, Identifier, Named, bearer
from services.gateway.keys import AGENT_SCOPES, Claims, KeyRing
from services.gateway.problems import Forbidden, InvalidRequest, NotFound, Unauthorized
from services.gateway.registry import GroupEntry, GroupRegistry

RING = KeyRing.parse("k1:0123456789abcdef-one")
GROUP = mint_group(1_700_000_000_000, b"0123456789")
ROLLOUT = rollout_of(GROUP, 3, RING.signing_secret)
PLAIN = Caller("owner", admin=False, claims=None)
CLAIMS = Claims(ROLLOUT, 2, GROUP, "solver", Mode.train, AGENT_SCOPES, 10)
SCOPED = Caller(ROLLOUT, admin=False, claims=CLAIMS)
DOOR = Doorkeeper(RING, "admin", ("plain",), allow_any=False)


@pytest.fixture
def registry() -> GroupRegistry:
    return GroupRegistry(MemoryStore())


@pytest.fixture
def identifier(registry: GroupRegistry) -> Identifier:
    return Identifier(RING, registry, {"sql-writer": "sql-writer"})


@pytest.mark.parametrize(
    ("text", "key"), [(None, ""), ("", ""), ("Bearer", ""), ("Bearer  a ", "a"), ("bearer a", "a"), ("Basic a", ""), ("a", "")]
)
def test_the_key_of_a_header(text: str | None, key: str) -> None:
    assert bearer(text) == key


def test_the_door_knows_its_keys() -> None:
    assert DOOR.admit("Bearer admin", 0).admin
    assert not DOOR.admit("Bearer plain", 0).admin
    assert DOOR.admit(f"Bearer {RING.mint(CLAIMS)}", 0).claims == CLAIMS
    for wrong in (None, "Bearer other", "Basic plain"):
        with pytest.raises(Unauthorized):
            DOOR.admit(wrong, 0)
    assert Doorkeeper(RING, None, (), allow_any=True).admit("Bearer whatever", 0).owner != "whatever"


async def test_a_scoped_key_is_the_rollout(identifier: Identifier) -> None:
    for named in (Named(), Named(path=ROLLOUT), Named(session="ignored")):
        who = await identifier.identify(SCOPED, named, "policy", 0)
        assert (who.rollout_id, who.group_id, who.attempt, who.mode) == (ROLLOUT, GROUP, 2, Mode.train)
        assert (who.identity, who.agent) == (Identity.scoped_key, "solver")
    for named in (Named(path="other"), Named(header="other")):
        with pytest.raises(Forbidden, match="belongs to rollout"):
            await identifier.identify(SCOPED, named, "policy", 0)


async def test_a_plain_key_without_a_name_is_a_rollout_of_its_own(identifier: Identifier) -> None:
    first = await identifier.identify(PLAIN, Named(), "policy", 5)
    second = await identifier.identify(PLAIN, Named(), "policy", 5)
    assert first.rollout_id != second.rollout_id
    assert (first.identity, first.mode, first.agent) == (Identity.none, Mode.live, "")
    assert identifier.genuine(first.rollout_id).group_id == first.group_id


async def test_a_name_is_the_same_rollout_for_the_same_owner_only(identifier: Identifier) -> None:
    by_path = await identifier.identify(PLAIN, Named(path="s", header="t", session="u"), "policy", 0)
    by_session = await identifier.identify(PLAIN, Named(session="s"), "policy", 99)
    other = await identifier.identify(Caller("other", admin=False, claims=None), Named(session="s"), "policy", 0)
    assert by_path.rollout_id == by_session.rollout_id != other.rollout_id
    assert (by_path.identity, by_session.identity) == (Identity.path, Identity.header)


async def test_a_declared_rollout_by_its_id(identifier: Identifier, registry: GroupRegistry) -> None:
    forgotten = await identifier.identify(PLAIN, Named(path=ROLLOUT), "policy", 0)
    assert (forgotten.mode, forgotten.attempt) == (Mode.live, 0)
    entry = GroupEntry(Mode.val, 1000, "", 3)
    await registry.put(GROUP, entry, 0)
    await registry.put_attempt(ROLLOUT, 2, entry, 0)
    known = await identifier.identify(PLAIN, Named(path=ROLLOUT), "policy", 0)
    assert (known.mode, known.attempt, known.group_id) == (Mode.val, 2, GROUP)


@pytest.mark.parametrize("name", ["ro_nonsense", rollout_of(GROUP, 3, b"another secret")])
async def test_an_id_nobody_gave_out(identifier: Identifier, name: str) -> None:
    with pytest.raises(NotFound):
        await identifier.identify(PLAIN, Named(header=name), "policy", 0)


@pytest.mark.parametrize("name", ["", " ", "x" * 257])
async def test_a_name_that_is_none(identifier: Identifier, name: str) -> None:
    with pytest.raises(InvalidRequest):
        await identifier.identify(PLAIN, Named(header=name), "policy", 0)


async def test_the_role_by_header_then_key_then_alias(identifier: Identifier) -> None:
    async def role(caller: Caller, named: Named, alias: str) -> str:
        return (await identifier.identify(caller, named, alias, 0)).agent

    assert await role(SCOPED, Named(agent="critic"), "sql-writer") == "critic"
    assert await role(SCOPED, Named(), "sql-writer") == "solver"
    assert await role(PLAIN, Named(), "sql-writer") == "sql-writer"
    assert await role(PLAIN, Named(), "policy") == ""
