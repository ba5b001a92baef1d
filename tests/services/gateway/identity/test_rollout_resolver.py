"""Who calls, and which rollout it is: key, path, header, session, or a rollout of its own."""

from __future__ import annotations

import msgspec
import pytest

from fulgurite.enums import Identity, Mode
from fulgurite.ids import completion_of, mint_group, rollout_of
from services.gateway.errors import ExpiredKey, Forbidden, InvalidRequest, NotFound, Unauthorized
from services.gateway.identity.authenticator import Authenticator, Caller, bearer
from services.gateway.identity.claims import Claims
from services.gateway.identity.conversation_matching import ConversationMatcher
from services.gateway.identity.declared_groups import DeclaredGroups, GroupEntry
from services.gateway.identity.harnesses import HarnessIdentity
from services.gateway.identity.keys import AGENT_SCOPES, LEEWAY_MS, KeyRing
from services.gateway.identity.rollout_resolver import Named, RolloutResolver
from services.gateway.identity.store import MemoryStore, RedisStore
from services.gateway.telemetry.metrics import Metrics
from services.local_stack.ports import free_port

RING = KeyRing.parse("k1:0123456789abcdef-one")
GROUP = mint_group(1_700_000_000_000, b"0123456789")
ROLLOUT = rollout_of(GROUP, 3, RING.signing_secret)
PLAIN = Caller("owner", admin=False, claims=None)
OTHER = Caller("other", admin=False, claims=None)
ADMIN = Caller("admin", admin=True, claims=None)
CLAIMS = Claims(ROLLOUT, 2, GROUP, "solver", Mode.train, AGENT_SCOPES, 10)
SCOPED = Caller(ROLLOUT, admin=False, claims=CLAIMS)
DOOR = Authenticator(RING, "admin", ("plain",), allow_any=False)


@pytest.fixture
def groups() -> DeclaredGroups:
    return DeclaredGroups(MemoryStore())


@pytest.fixture
def resolver(groups: DeclaredGroups) -> RolloutResolver:
    return RolloutResolver(
        RING,
        groups,
        {"sql-writer": "sql-writer"},
        ConversationMatcher(MemoryStore(), RING.signing_secret, 60, Metrics()),
    )


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (None, ""),
        ("", ""),
        ("Bearer", ""),
        ("Bearer  a ", "a"),
        ("bearer a", "a"),
        ("Basic a", ""),
        ("a", ""),
    ],
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
    assert (
        Authenticator(RING, None, (), allow_any=True).admit("Bearer whatever", 0).owner
        != "whatever"
    )


async def test_a_scoped_key_is_the_rollout(resolver: RolloutResolver) -> None:
    for named in (Named(), Named(path=ROLLOUT), Named(session="ignored")):
        who = await resolver.identify(SCOPED, named, "policy", 0)
        assert (who.rollout_id, who.group_id, who.attempt, who.mode) == (
            ROLLOUT,
            GROUP,
            2,
            Mode.train,
        )
        assert (who.identity, who.agent) == (Identity.scoped_key, "solver")
    for named in (Named(path="other"), Named(header="other")):
        with pytest.raises(Forbidden, match="belongs to rollout"):
            await resolver.identify(SCOPED, named, "policy", 0)


async def test_a_plain_key_without_a_name_is_a_rollout_of_its_own(
    resolver: RolloutResolver,
) -> None:
    first = await resolver.identify(PLAIN, Named(), "policy", 5)
    second = await resolver.identify(PLAIN, Named(), "policy", 5)
    assert first.rollout_id != second.rollout_id
    assert (first.identity, first.mode, first.agent) == (Identity.none, Mode.live, "")
    assert resolver.genuine(first.rollout_id).group_id == first.group_id


CODING = HarnessIdentity("codex:thread", "child", "thread")


async def test_a_coding_agents_session_is_one_live_rollout_of_its_keys_owner(
    resolver: RolloutResolver,
) -> None:
    main = Named(harness=HarnessIdentity("codex:thread"), items=[{"role": "user", "content": "a"}])
    first = await resolver.identify(PLAIN, main, "policy", 5)
    child = await resolver.identify(PLAIN, Named(harness=CODING), "other", 9)
    assert (first.identity, first.mode, first.agent, first.parent_agent) == (
        Identity.inferred, Mode.live, "", None,
    )  # fmt: skip
    assert (child.rollout_id, child.agent, child.parent_agent) == (
        first.rollout_id, "child", "thread",
    )  # fmt: skip
    assert first.conversation is None, "the session says where its calls belong"
    theirs = await resolver.identify(OTHER, main, "policy", 5)
    elsewhere = await resolver.identify(
        PLAIN, Named(harness=HarnessIdentity("opencode:thread")), "policy", 5
    )
    assert len({first.group_id, theirs.group_id, elsewhere.group_id}) == 3


async def test_a_session_can_name_no_rollout_by_its_id(resolver: RolloutResolver) -> None:
    for caller in (PLAIN, ADMIN):
        named = Named(harness=HarnessIdentity(ROLLOUT))
        assert (await resolver.identify(caller, named, "policy", 5)).rollout_id != ROLLOUT


async def test_what_the_request_names_goes_before_a_coding_agents_session(
    resolver: RolloutResolver,
) -> None:
    for named in (Named(path="s"), Named(header="s"), Named(session="s")):
        alone = await resolver.identify(PLAIN, named, "policy", 5)
        both = await resolver.identify(
            PLAIN, msgspec.structs.replace(named, harness=CODING), "policy", 5
        )
        assert both == msgspec.structs.replace(alone, agent="child", parent_agent="thread")
    opened = await resolver.identify(PLAIN, Named(), "policy", 5)
    call = completion_of(opened.rollout_id, 0, b"12345", RING.signing_secret)
    continued = await resolver.identify(PLAIN, Named(continues=call, harness=CODING), "policy", 5)
    assert continued.rollout_id == opened.rollout_id
    scoped = await resolver.identify(SCOPED, Named(harness=CODING), "policy", 5)
    assert (scoped.rollout_id, scoped.agent, scoped.parent_agent) == (ROLLOUT, "solver", None)


async def test_a_sub_agents_name_is_a_role_that_others_go_before(resolver: RolloutResolver) -> None:
    for named, role in (
        (Named(harness=CODING), "child"),
        (Named(harness=CODING, prompted="checker"), "checker"),
        (Named(harness=CODING, agent="critic"), "critic"),
        (Named(harness=HarnessIdentity("codex:thread")), "sql-writer"),
    ):
        assert (await resolver.identify(PLAIN, named, "sql-writer", 5)).agent == role
    unnamed = Caller(ROLLOUT, admin=False, claims=msgspec.structs.replace(CLAIMS, agent=""))
    assert (await resolver.identify(unnamed, Named(harness=CODING), "policy", 5)).agent == ""


async def test_a_conversation_goes_on_in_its_rollout(resolver: RolloutResolver) -> None:
    ask, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
    first = await resolver.identify(PLAIN, Named(items=[ask]), "policy", 5)
    await resolver.remember(first, [[answer]])
    second = await resolver.identify(PLAIN, Named(items=[ask, answer, ask]), "sql-writer", 5)
    assert second.identity is Identity.none, "another alias is another conversation"
    second = await resolver.identify(PLAIN, Named(items=[ask, answer, ask]), "policy", 5)
    assert (first.identity, second.identity) == (Identity.none, Identity.inferred)
    assert (second.rollout_id, second.group_id, second.attempt) == (
        first.rollout_id,
        first.group_id,
        0,
    )
    again = await resolver.identify(PLAIN, Named(items=[ask]), "policy", 5)
    assert again.rollout_id != first.rollout_id, "the same first prompt is another rollout"
    named = await resolver.identify(
        PLAIN, Named(session="s", items=[ask, answer, ask]), "policy", 5
    )
    assert named.identity is Identity.header
    await resolver.remember(named, [[answer]])


async def test_without_inference_every_unnamed_call_is_a_rollout_of_its_own(
    groups: DeclaredGroups,
) -> None:
    resolver = RolloutResolver(RING, groups, {})
    ask, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
    first = await resolver.identify(PLAIN, Named(items=[ask]), "policy", 5)
    await resolver.remember(first, [[answer]])
    assert (
        await resolver.identify(PLAIN, Named(items=[ask, answer, ask]), "policy", 5)
    ).identity is Identity.none


async def test_an_answer_that_is_built_on_names_its_rollout(
    resolver: RolloutResolver, groups: DeclaredGroups
) -> None:
    opened = await resolver.identify(PLAIN, Named(), "policy", 5)
    call = completion_of(opened.rollout_id, 0, b"01234", RING.signing_secret).replace(
        "chatcmpl-", "resp_"
    )
    who = await resolver.identify(PLAIN, Named(continues=call), "policy", 5)
    assert (who.rollout_id, who.group_id, who.attempt, who.mode) == (
        opened.rollout_id,
        opened.group_id,
        0,
        Mode.live,
    )
    assert (who.identity, who.conversation) == (Identity.header, None)
    assert (
        await resolver.identify(PLAIN, Named(continues=call, session="s"), "policy", 5)
    ).rollout_id != opened.rollout_id
    declared = completion_of(ROLLOUT, 2, b"01234", RING.signing_secret)
    assert (
        await resolver.identify(ADMIN, Named(continues=declared), "policy", 5)
    ).mode is Mode.live
    await groups.put(GROUP, GroupEntry(Mode.val, 1000, "", 3), 0)
    who = await resolver.identify(ADMIN, Named(continues=declared), "policy", 5)
    assert (who.rollout_id, who.attempt, who.mode) == (ROLLOUT, 2, Mode.val)
    forged = completion_of(
        rollout_of(GROUP, 3, b"another secret"), 0, b"01234", RING.signing_secret
    )
    untagged = call[:-4] + ("0000" if call[-4:] != "0000" else "1111")
    for nobodys in (forged, "resp_123", "", declared, untagged):
        assert (
            await resolver.identify(PLAIN, Named(continues=nobodys), "policy", 5)
        ).identity is Identity.none
    assert (
        await resolver.identify(OTHER, Named(continues=call), "policy", 5)
    ).identity is Identity.none


async def test_an_agent_that_built_on_an_answer_may_send_the_whole_conversation_next(
    resolver: RolloutResolver,
) -> None:
    ask, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
    opened = await resolver.identify(PLAIN, Named(session="s"), "policy", 5)
    call = completion_of(opened.rollout_id, 0, b"01234567", RING.signing_secret)
    who = await resolver.identify(
        PLAIN, Named(continues=call, items=[ask, answer, ask]), "policy", 5
    )
    await resolver.remember(who, [[answer]])
    whole = await resolver.identify(
        PLAIN, Named(items=[ask, answer, ask, answer, ask]), "policy", 5
    )
    assert (whole.rollout_id, whole.identity) == (opened.rollout_id, Identity.inferred)
    by_admin = await resolver.identify(
        ADMIN, Named(continues=call, items=[ask, answer, ask]), "policy", 5
    )
    assert by_admin.conversation is None, (
        "it may be a declared rollout, which calls without its name are not filed in"
    )


async def test_who_may_name_what(resolver: RolloutResolver) -> None:
    """The table of the README."""
    unnamed = (await resolver.identify(PLAIN, Named(), "policy", 5)).rollout_id
    session = (await resolver.identify(PLAIN, Named(session="s"), "policy", 5)).rollout_id
    sibling = rollout_of(GROUP, 4, RING.signing_secret)
    may: dict[str, tuple[Caller, ...]] = {
        unnamed: (PLAIN, ADMIN),
        session: (PLAIN, ADMIN),
        ROLLOUT: (SCOPED, ADMIN),
        sibling: (ADMIN,),
    }
    for rollout, callers in may.items():
        answer = completion_of(rollout, 0, b"01234", RING.signing_secret)
        for caller in (PLAIN, OTHER, SCOPED, ADMIN):
            assert (resolver.own_completion(caller, answer) is not None) == (caller in callers)
            for named in (
                Named(path=rollout),
                Named(header=rollout),
                *([] if caller is SCOPED else [Named(session=rollout)]),
            ):
                if caller in callers:
                    assert (
                        await resolver.identify(caller, named, "policy", 5)
                    ).rollout_id == rollout
                else:
                    with pytest.raises(Forbidden) as caught:
                        await resolver.identify(caller, named, "policy", 5)
                    assert caught.value.code == "foreign_key"


async def test_a_rollout_stays_its_owners_after_a_change_of_the_secret(
    groups: DeclaredGroups,
) -> None:
    before = await RolloutResolver(RING, groups, {}).identify(PLAIN, Named(), "policy", 5)
    rotated = RolloutResolver(
        KeyRing.parse("k2:fedcba9876543210-two,k1:0123456789abcdef-one"), groups, {}
    )
    assert (
        await rotated.identify(PLAIN, Named(path=before.rollout_id), "policy", 5)
    ).rollout_id == before.rollout_id


async def test_a_store_that_is_gone_stops_no_plain_traffic() -> None:
    store = RedisStore(f"redis://127.0.0.1:{free_port()}/0")
    resolver = RolloutResolver(
        RING,
        DeclaredGroups(store),
        {},
        ConversationMatcher(store, RING.signing_secret, 60, Metrics()),
    )
    answer = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    who = await resolver.identify(PLAIN, Named(items=answer), "policy", 5)
    assert who.identity is Identity.none
    await resolver.remember(who, [answer])
    for caller, rollout in ((PLAIN, who.rollout_id), (ADMIN, ROLLOUT)):
        built_on = await resolver.identify(
            caller,
            Named(continues=completion_of(rollout, 0, b"01234", RING.signing_secret)),
            "policy",
            5,
        )
        assert (built_on.rollout_id, built_on.mode) == (rollout, Mode.live)


def test_a_retired_kid_a_foreign_signature_and_an_expiry_with_its_leeway() -> None:
    key = RING.mint(CLAIMS)
    rotated = KeyRing.parse("k2:fedcba9876543210-two,k1:0123456789abcdef-one")
    assert (
        Authenticator(rotated, None, (), allow_any=False).admit(f"Bearer {key}", 0).claims == CLAIMS
    )
    retired = Authenticator(KeyRing.parse("k2:fedcba9876543210-two"), None, (), allow_any=True)
    with pytest.raises(Unauthorized, match="retired"):
        retired.admit(f"Bearer {key}", 0)
    another = Authenticator(KeyRing.parse("k1:another-secret-16"), None, (), allow_any=True)
    with pytest.raises(Unauthorized, match="signature"):
        another.admit(f"Bearer {key}", 0)
    assert DOOR.admit(f"Bearer {key}", CLAIMS.exp + LEEWAY_MS).claims == CLAIMS
    with pytest.raises(ExpiredKey):
        DOOR.admit(f"Bearer {key}", CLAIMS.exp + LEEWAY_MS + 1)


async def test_a_name_is_the_same_rollout_for_the_same_owner_only(
    resolver: RolloutResolver,
) -> None:
    by_path = await resolver.identify(PLAIN, Named(path="s", header="t", session="u"), "policy", 0)
    by_session = await resolver.identify(PLAIN, Named(session="s"), "policy", 99)
    other = await resolver.identify(
        Caller("other", admin=False, claims=None), Named(session="s"), "policy", 0
    )
    assert by_path.rollout_id == by_session.rollout_id != other.rollout_id
    assert (by_path.identity, by_session.identity) == (Identity.path, Identity.header)


async def test_a_declared_rollout_by_its_id(
    resolver: RolloutResolver, groups: DeclaredGroups
) -> None:
    forgotten = await resolver.identify(ADMIN, Named(path=ROLLOUT), "policy", 0)
    assert (forgotten.mode, forgotten.attempt) == (Mode.live, 0)
    entry = GroupEntry(Mode.val, 1000, "", 3)
    await groups.put(GROUP, entry, 0)
    await groups.put_attempt(ROLLOUT, 2, entry, 0)
    known = await resolver.identify(ADMIN, Named(path=ROLLOUT), "policy", 0)
    assert (known.mode, known.attempt, known.group_id) == (Mode.val, 2, GROUP)


@pytest.mark.parametrize("name", ["ro_nonsense", rollout_of(GROUP, 3, b"another secret")])
async def test_an_id_nobody_gave_out(resolver: RolloutResolver, name: str) -> None:
    with pytest.raises(NotFound):
        await resolver.identify(PLAIN, Named(header=name), "policy", 0)


@pytest.mark.parametrize("name", ["", " ", "x" * 257])
async def test_a_name_that_is_none(resolver: RolloutResolver, name: str) -> None:
    with pytest.raises(InvalidRequest):
        await resolver.identify(PLAIN, Named(header=name), "policy", 0)


async def test_the_role_by_header_then_key_then_alias(resolver: RolloutResolver) -> None:
    async def role(caller: Caller, named: Named, alias: str) -> str:
        return (await resolver.identify(caller, named, alias, 0)).agent

    assert await role(SCOPED, Named(agent="critic"), "sql-writer") == "critic"
    assert await role(SCOPED, Named(), "sql-writer") == "solver"
    assert await role(PLAIN, Named(), "sql-writer") == "sql-writer"
    assert await role(PLAIN, Named(), "policy") == ""


@pytest.mark.parametrize(
    ("caller", "named", "alias", "role"),
    [
        (PLAIN, Named(agent="header", prompted="prompt"), "sql-writer", "header"),
        (SCOPED, Named(prompted="prompt"), "sql-writer", "solver"),
        (PLAIN, Named(prompted="prompt"), "sql-writer", "prompt"),
        (PLAIN, Named(), "sql-writer", "sql-writer"),
        (PLAIN, Named(), "policy", ""),
    ],
)
async def test_the_first_of_these_names_the_role(
    resolver: RolloutResolver, caller: Caller, named: Named, alias: str, role: str
) -> None:
    assert (await resolver.identify(caller, named, alias, 5)).agent == role
