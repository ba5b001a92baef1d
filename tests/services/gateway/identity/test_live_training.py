"""What training may do with a call: by its alias, its owner's quota, and who is left out."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from fulgurite.enums import Identity, Mode, TrainingUse
from services.gateway.identity.authenticator import Caller
from services.gateway.identity.claims import Claims
from services.gateway.identity.live_training import LiveTraining, is_refusal
from services.gateway.identity.rollout_resolver import Identified
from services.gateway.identity.store import MemoryStore, RedisStore, Store
from services.gateway.telemetry.metrics import Metrics
from services.local_stack.ports import free_port

HOUR_MS = 3_600_000
PLAIN, ADMIN = Caller("owner", admin=False, claims=None), Caller("admin", admin=True, claims=None)
SCOPED = Caller(
    "ro", admin=False, claims=Claims("ro", 0, "gr", "", Mode.live, scopes=("call",), exp=1)
)
LIVE, QUOTA, EXCLUDED = TrainingUse.live, TrainingUse.quota, TrainingUse.excluded
BY_MODE = TrainingUse.by_mode


class Deciding:
    """Asks what training may do."""

    def __init__(
        self,
        quota: int = 0,
        store: Store | None = None,
        owners: Iterable[str] = (),
        subjects: Iterable[str] = (),
    ) -> None:
        self.metrics = Metrics()
        self._training = LiveTraining(
            frozenset({"policy"}),
            frozenset(owners),
            frozenset(subjects),
            quota,
            store or MemoryStore(),
            self.metrics,
        )

    async def use(
        self,
        rollout: str = "a",
        *,
        caller: Caller = PLAIN,
        mode: Mode = Mode.live,
        alias: str = "policy",
        subject: str | None = None,
        refusal: str | None = None,
        at: int = 0,
    ) -> TrainingUse:
        who = Identified("g", rollout, 0, mode, "", Identity.none)
        return await self._training.use_of(caller, who, alias, subject, refusal, at)

    def count(self, use: str) -> float:
        return (
            self.metrics.registry.get_sample_value(
                "fulgurite_gateway_training_uses_total", {"use": use}
            )
            or 0
        )


async def test_only_plain_keys_live_calls_to_an_alias_that_is_opted_in_are_trained() -> None:
    deciding = Deciding()
    assert await deciding.use() is LIVE
    assert await deciding.use(alias="small") is BY_MODE
    assert await deciding.use(mode=Mode.train) is BY_MODE
    for caller in (ADMIN, SCOPED):
        assert await deciding.use(caller=caller) is BY_MODE
    assert deciding.count("live") == 1


async def test_a_request_a_key_or_a_person_is_left_out_in_any_mode() -> None:
    deciding = Deciding(owners=["owner"], subjects=["su_1"])
    assert await deciding.use() is EXCLUDED
    assert await deciding.use(caller=SCOPED) is BY_MODE
    assert await deciding.use(caller=SCOPED, mode=Mode.train, refusal="1") is EXCLUDED
    assert await deciding.use(caller=SCOPED, alias="small", subject="su_1") is EXCLUDED
    assert await Deciding().use(subject="su_1") is LIVE
    assert deciding.count("excluded") == 3


@pytest.mark.parametrize(
    ("value", "refused"),
    [
        (None, False),
        ("", False),
        ("0", False),
        (" False ", False),
        ("1", True),
        ("true", True),
        ("yes", True),
    ],
)
def test_anything_but_no_leaves_a_request_out(value: str | None, refused: bool) -> None:
    assert is_refusal(value) is refused


async def test_a_quota_counts_rollouts_and_a_rollout_keeps_its_decision() -> None:
    deciding = Deciding(quota=2)
    assert [await deciding.use(name) for name in ("a", "a", "b", "c")] == [LIVE, LIVE, LIVE, QUOTA]
    assert await deciding.use("c", at=HOUR_MS) is QUOTA
    assert await deciding.use("d", at=HOUR_MS) is LIVE
    assert await deciding.use("a", at=HOUR_MS) is LIVE


async def test_each_owner_and_each_person_has_a_quota() -> None:
    deciding = Deciding(quota=1)
    other = Caller("other", admin=False, claims=None)
    assert await deciding.use("a") is LIVE
    assert await deciding.use("b", subject="su_1") is LIVE
    assert await deciding.use("c", caller=other) is LIVE
    assert await deciding.use("d", subject="su_1") is QUOTA


async def test_without_the_store_nothing_is_within_a_quota() -> None:
    deciding = Deciding(quota=1, store=RedisStore(f"redis://127.0.0.1:{free_port()}/0"))
    assert await deciding.use() is QUOTA
    assert deciding.count("store_down") == 1
