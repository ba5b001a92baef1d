"""Brings one engine to the target version, and probes that it serves it.

Reads `policy.updates` and `policy.routes`, writes `policy.applied`. Each round compares the target
version with the version that the engine reports, so a restart of either side is harmless. A version
that cannot be served is reported once and skipped until the engine restarts or a route names it
again. Instead of the newest version the next older one is loaded; instead of a version that a route
pins, the engine keeps what it serves. An unreachable engine is retried without end. Updates wake
the loop at once; between them the engine is asked every second.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from pathlib import Path

import msgspec

from fulgurite.enums import ApplyOutcome
from fulgurite.versions import MalformedVersion, Version, base_version, parse_version
from services.applier.announcer import Announcer
from services.applier.artifacts import base_weights, check, find
from services.applier.engine import Engine
from services.applier.errors import (
    ApplyFailed,
    BadArtifact,
    EngineRefused,
    EngineUnreachable,
    LoadBroken,
    ProbeFailed,
)
from services.applier.log_watch import Followed
from services.applier.probing import difference
from services.applier.settings import ApplierSettings
from services.common.runtime import liveness, logs

logger = logs.get(__name__)

UNTOUCHED = "default"
"""vLLM's name for the weights that it was started with."""

_BACKOFF_S = (0.2, 0.5, 1.0, 2.0)
"""Pauses between tries. An engine takes half a minute to restart; asking it is cheap."""


class Tally(msgspec.Struct):
    """What is known of the engine since it last started."""

    engine_id: str
    reports: Version | None
    """The version it reported last, or was given last; if it reports another, it has restarted."""
    proved: Version | None = None
    """The last version whose probe passed, or the base weights it was started with."""
    damaged: bool = False
    """Whether it may hold other weights than it reports."""
    passed_over: set[Version] = msgspec.field(default_factory=set[Version])
    reported_unknown: set[Version] = msgspec.field(default_factory=set[Version])
    """Unpublished versions that a route names, once reported."""


class PolicyApplier:
    """Keeps one engine at the target version; `run` until cancelled."""

    def __init__(
        self, settings: ApplierSettings, engine: Engine, followed: Followed, announcer: Announcer
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._followed = followed
        self._announcer = announcer
        self.settled = asyncio.Event()
        """Set while the engine has the right weights. Adapters are probed only then."""
        self._base = base_version(settings.policy)
        self._tally: Tally | None = None
        self._routes_seen = 0
        self._unreachable = False

    async def run(self) -> None:
        """Run the loop. Start it once the log has been read."""
        failures = 0
        while True:
            self._followed.changed.clear()
            try:
                await self._round()
                liveness.beat()
                failures, pause_s = 0, self._settings.check_interval_s
                if self._unreachable:
                    self._unreachable = False
                    logger.info("the engine answers again")
            except (EngineUnreachable, EngineRefused) as error:
                if not self._unreachable:
                    logger.warning(
                        "the engine cannot be reached or refuses requests; trying again",
                        error=str(error),
                    )
                self._unreachable = True
                pause_s = _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]
                failures += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._followed.changed.wait(), pause_s)

    async def _round(self) -> None:
        served = await self._served()
        tally = await self._recognise(served)
        self._retry_routed_versions(tally)
        kept = self._kept(served, tally)
        self._report_unknown_pin(tally, kept)
        target = self._followed.target.version(
            tally.passed_over, kept=kept, canary=self._settings.canary
        )
        if target in tally.passed_over:
            # No version can be loaded until the next update or a restart of the engine.
            self.settled.set()
            return
        if served != target or tally.damaged:
            self.settled.clear()
            await self._bring_to(target, served, tally)
        elif tally.proved != target:
            # This applier is new, or died between loading and reporting.
            await self._prove(target, tally)
        if tally.proved == target and not tally.damaged:
            self.settled.set()

    def _retry_routed_versions(self, tally: Tally) -> None:
        """After a new route, try the versions that routes name again: their files may be back."""
        if self._followed.routes != self._routes_seen:
            self._routes_seen = self._followed.routes
            tally.passed_over -= self._followed.target.named()
            tally.reported_unknown.clear()

    def _kept(self, served: Version | None, tally: Tally) -> Version | None:
        """The version to keep; None for base weights that the engine merely started with."""
        return tally.proved or (None if served == self._base else served)

    def _report_unknown_pin(self, tally: Tally, kept: Version | None) -> None:
        pinned = self._followed.target.pinned()
        if (
            pinned is None
            or self._followed.target.is_known(pinned)
            or pinned in tally.reported_unknown
        ):
            return
        tally.reported_unknown.add(pinned)
        error = (
            f"a route names {pinned}, which was never published: choose another version with "
            "`fulgurite routes set`"
        )
        self._report_failed(tally, pinned, kept, error)

    async def _served(self) -> Version | None:
        """Ask the engine for its version; None for weights loaded under an unknown name."""
        label = await self._engine.weight_version()
        if label == UNTOUCHED:
            return self._base
        with contextlib.suppress(MalformedVersion):
            return parse_version(label)
        return None

    async def _recognise(self, served: Version | None) -> Tally:
        """Return the tally of this engine; a new one if the engine has restarted."""
        if self._tally is not None and served == self._tally.reports:
            return self._tally
        tally = Tally(engine_id=f"{self._settings.backend}-{uuid.uuid4().hex[:12]}", reports=served)
        if await self._engine.is_paused():
            logger.warning(
                "the engine is paused, perhaps in the middle of an update: reloading the weights"
            )
            tally.damaged = True
            await self._engine.resume()
        logger.info("engine found", engine_id=tally.engine_id, version=str(served))
        self._tally = tally
        return tally

    async def _bring_to(self, target: Version, served: Version | None, tally: Tally) -> None:
        started = time.monotonic()
        previous = str(served) if served is not None else None
        logger.info("loading", version=str(target), served=previous)
        try:
            largest = await self._load_and_probe(target, served, tally)
        except ApplyFailed as error:
            tally.passed_over.add(target)
            largest = error.largest if isinstance(error, ProbeFailed) else None
            self._report_failed(
                tally, target, served, str(error), time.monotonic() - started, largest
            )
            # Run the next round at once: wrong weights may be answering.
            self._followed.changed.set()
            return
        tally.damaged = False
        tally.proved = target
        seconds = time.monotonic() - started
        logger.info(
            "served", version=str(target), seconds=round(seconds, 3), largest_difference=largest
        )
        self._announcer.report(
            tally.engine_id,
            target,
            ApplyOutcome.applied,
            seconds,
            previous=previous,
            difference=largest,
        )

    def _report_failed(
        self,
        tally: Tally,
        version: Version,
        served: Version | None,
        error: str,
        seconds: float = 0.0,
        largest: float | None = None,
    ) -> None:
        previous = str(served) if served is not None else None
        logger.error(
            "the version cannot be served and is skipped",
            version=str(version),
            error=error,
            served=previous,
        )
        self._announcer.report(
            tally.engine_id,
            version,
            ApplyOutcome.failed,
            seconds,
            previous=previous,
            error=error,
            difference=largest,
        )

    async def _load_and_probe(
        self, target: Version, served: Version | None, tally: Tally
    ) -> float | None:
        path = await self._checked_weights(target)
        try:
            rollback = served is not None and target < served
            paused_s = await self._engine.load(str(path), str(target), rollback=rollback)
            logger.info("loaded", version=str(target), paused_seconds=round(paused_s, 3))
            tally.reports = target
            return await self._difference(target)
        except (LoadBroken, ProbeFailed, EngineUnreachable):
            tally.damaged = True
            raise

    async def _prove(self, target: Version, tally: Tally) -> None:
        started = time.monotonic()
        try:
            largest = await self._difference(target)
        except ProbeFailed as error:
            logger.error(
                "the engine's weights are not the version that it reports: loading them again",
                version=str(target),
                error=str(error),
            )
            tally.damaged = True
            self._followed.changed.set()
            return
        tally.proved = target
        seconds = time.monotonic() - started
        self._announcer.report(
            tally.engine_id,
            target,
            ApplyOutcome.applied,
            seconds,
            previous=str(target),
            difference=largest,
        )

    async def _checked_weights(self, version: Version) -> Path:
        """Find the weights and check them, while the engine reads them and generates.

        Raises BadArtifact, EngineRefused, EngineUnreachable.
        """
        if version == self._base:
            path = base_weights(self._settings.model)
            await self._engine.read_ahead(str(path))
            return path
        artifact = self._followed.target.updates[version].artifact
        if artifact is None:
            raise BadArtifact(f"the update {version} in policy.updates names no weights")
        weights = find(artifact)
        await self._engine.read_ahead(str(weights.engine_path))
        await asyncio.to_thread(check, weights)
        return weights.engine_path

    async def _difference(self, version: Version) -> float | None:
        return await difference(
            self._engine,
            self._followed.target.updates.get(version),
            self._settings.probe_tolerance,
        )
