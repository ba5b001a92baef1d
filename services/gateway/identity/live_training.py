"""Decides for each call what training may do with its episode: by the opt-in of its alias, the
quota of its owner, and who is left out.

The decision is written into the call's event, and what reads the log follows it. So a replay agrees
with it, whatever the settings are by then.
"""

from __future__ import annotations

from fulgurite.enums import Mode, TrainingUse
from services.common.runtime import logs
from services.gateway.identity.authenticator import Caller
from services.gateway.identity.rollout_resolver import Identified
from services.gateway.identity.store import Store
from services.gateway.identity.store_patience import StorePatience
from services.gateway.telemetry.metrics import Metrics

log = logs.get(__name__)

NO_TRAIN_HEADER = "x-fulgurite-no-train"
ROLLOUTS_IN_MEMORY = 100_000
"""Rollouts and counts that a gateway without Redis remembers: some 30 MB."""
_HOUR_S = 3600
_REMEMBER_S = 24 * _HOUR_S
_WITHIN, _BEYOND = b"1", b"0"


class LiveTraining:
    """What training may do with calls."""

    def __init__(
        self,
        aliases: frozenset[str],
        owners_left_out: frozenset[str],
        subjects_left_out: frozenset[str],
        quota: int,
        store: Store,
        metrics: Metrics,
    ) -> None:
        """`quota`: episodes per owner and subject that are trained in an hour; 0 is no limit."""
        self._aliases = aliases
        self._owners = owners_left_out
        self._subjects = subjects_left_out
        self._quota = quota
        self._store = store
        self._uses = metrics.training_uses
        self._patience = StorePatience(
            metrics.training_uses.labels("store_down").inc,
            lambda: log.warning(
                "live calls are not trained, because their quota is unknown: the store (REDIS_URL) "
                "does not answer"
            ),
        )

    async def use_of(
        self,
        caller: Caller,
        who: Identified,
        alias: str,
        subject: str | None,
        refusal: str | None,
        now_ms: int,
    ) -> TrainingUse:
        """What training may do with a call. `refusal`: the value of its `x-fulgurite-no-train`."""
        use = TrainingUse.by_mode
        if is_refusal(refusal) or caller.owner in self._owners or subject in self._subjects:
            use = TrainingUse.excluded
        elif self._is_opted_in(caller, who, alias):
            owner = f"{caller.owner}:{subject or ''}"
            is_within = not self._quota or await self._is_within(owner, who.rollout_id, now_ms)
            use = TrainingUse.live if is_within else TrainingUse.quota
        if use is not TrainingUse.by_mode:
            self._uses.labels(use.value).inc()
        return use

    def _is_opted_in(self, caller: Caller, who: Identified, alias: str) -> bool:
        """Whether it is live traffic of an alias that is opted in. A key of a declared rollout, or
        the admin's, which may name one, brings a mode of its own.
        """
        is_plain = caller.claims is None and not caller.admin
        return is_plain and who.mode is Mode.live and alias in self._aliases

    async def _is_within(self, owner: str, rollout_id: str, now_ms: int) -> bool:
        """Whether the rollout is one of those that its owner may have trained in the hour of its
        first call. Without an answer of the store it is not.
        """
        decided = await self._patience.ask(lambda: self._decide(owner, rollout_id, now_ms))
        return decided == _WITHIN

    async def _decide(self, owner: str, rollout_id: str, now_ms: int) -> bytes:
        key = f"live:{rollout_id}"
        known = await self._store.get(key)
        if known is not None:
            return known
        hour = now_ms // (1000 * _HOUR_S)
        count = await self._store.increment(f"live_quota:{owner}:{hour}", 2 * _HOUR_S)
        decided = _WITHIN if count <= self._quota else _BEYOND
        # Of two first calls at once, one decides.
        return await self._store.put_new(key, decided, _REMEMBER_S) or decided


def is_refusal(value: str | None) -> bool:
    """Whether a value of `x-fulgurite-no-train` leaves the call out: anything but nothing, `0` and
    `false`.
    """
    return (value or "").strip().lower() not in ("", "0", "false")
