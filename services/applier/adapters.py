"""Keeps one policy's LoRA adapters loaded in an engine, each version under its own name.

The name is `policy@epoch.step`. Each round compares the target versions (the newest, and all that
routes name) with the adapters that the engine lists. A missing adapter is checked, loaded and
probed, then reported in `policy.applied`. An adapter that is no target is reported as retired and
unloaded, but the last few stay, for calls in flight. An adapter that cannot be served is reported
once and skipped until the engine restarts or a route names it again. An engine that did not answer,
or lacks an adapter that it had, has restarted: it gets a new id, and its adapters again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid

import msgspec

from fulgurite.enums import ApplyOutcome
from fulgurite.versions import MalformedVersion, Version, parse_version
from services.applier.announcer import Announcer
from services.applier.artifacts import fetch_adapter
from services.applier.engine import Engine
from services.applier.errors import (
    ApplyFailed,
    BadArtifact,
    EngineRefused,
    EngineUnreachable,
    ProbeFailed,
)
from services.applier.log_watch import Followed
from services.applier.probing import difference
from services.applier.settings import ApplierSettings
from services.common.runtime import liveness, logs

logger = logs.get(__name__)

KEEP = 3
"""How many versions stay loaded at least, even if they are no target: calls may be in flight."""


class AdapterTally(msgspec.Struct):
    """What is known of the engine since it last started."""

    engine_id: str
    proved: set[Version] = msgspec.field(default_factory=set[Version])
    passed_over: set[Version] = msgspec.field(default_factory=set[Version])


class AdapterKeeper:
    """Keeps the adapters of one policy; `run` until cancelled."""

    def __init__(
        self,
        policy: str,
        settings: ApplierSettings,
        engine: Engine,
        followed: Followed,
        announcer: Announcer,
        base: asyncio.Event,
    ) -> None:
        """`base`: is set while the engine has the right base weights."""
        self._policy = policy
        self._settings = settings
        self._engine = engine
        self._followed = followed
        self._announcer = announcer
        self._base = base
        self._tally = self._new_tally()
        self._away = False
        self._routes_seen = 0

    async def run(self) -> None:
        """Run the loop. Start it once the log has been read."""
        while True:
            await self._base.wait()
            self._followed.changed.clear()
            try:
                await self._round()
                liveness.beat()
                if self._away:
                    logger.info("the engine answers again", policy=self._policy)
                self._away = False
            except (EngineUnreachable, EngineRefused) as error:
                if not self._away:
                    logger.warning(
                        "the engine cannot be reached or refuses requests; trying again",
                        policy=self._policy,
                        error=str(error),
                    )
                self._away = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self._followed.changed.wait(), self._settings.check_interval_s
                )

    async def _round(self) -> None:
        loaded = await self._loaded()
        if self._away or not self._tally.proved <= loaded:
            self._tally = self._new_tally()
        if self._followed.routes != self._routes_seen:
            self._routes_seen = self._followed.routes
            self._tally.passed_over -= self._followed.target.named()
        for version in self._followed.target.versions(self._tally.passed_over):
            if version not in self._tally.proved:
                await self._bring(version, loaded)
        await self._retire(loaded)

    async def _loaded(self) -> set[Version]:
        """The policy's adapters that the engine lists."""
        found: set[Version] = set()
        for name in await self._engine.adapters():
            with contextlib.suppress(MalformedVersion):
                version = parse_version(name)
                if version.policy == self._policy:
                    found.add(version)
        return found

    async def _bring(self, version: Version, loaded: set[Version]) -> None:
        """Load an adapter, probe it and report it.

        One that is loaded already came from an applier that died; it is probed again.
        """
        started = time.monotonic()
        try:
            if version not in loaded:
                await self._load(version)
                loaded.add(version)
            found = await difference(
                self._engine,
                self._followed.target.updates[version],
                self._settings.probe_tolerance,
                model=str(version),
            )
        except ApplyFailed as error:
            self._tally.passed_over.add(version)
            largest = error.largest if isinstance(error, ProbeFailed) else None
            logger.error(
                "the adapter cannot be served and is skipped",
                version=str(version),
                error=str(error),
            )
            seconds = time.monotonic() - started
            self._announcer.report(
                self._tally.engine_id,
                version,
                ApplyOutcome.failed,
                seconds,
                error=str(error),
                difference=largest,
            )
            if version in loaded:
                await self._engine.unload_adapter(str(version))
                loaded.discard(version)
            # Run the next round at once: another version may have to take its place.
            self._followed.changed.set()
            return
        seconds = time.monotonic() - started
        self._tally.proved.add(version)
        logger.info(
            "adapter served",
            version=str(version),
            seconds=round(seconds, 3),
            largest_difference=found,
        )
        self._announcer.report(
            self._tally.engine_id, version, ApplyOutcome.applied, seconds, difference=found
        )

    async def _load(self, version: Version) -> None:
        artifact = self._followed.target.updates[version].artifact
        if artifact is None:
            raise BadArtifact(f"the update {version} in policy.updates names no weights")
        folder = await asyncio.to_thread(fetch_adapter, artifact)
        logger.info("loading adapter", version=str(version))
        await self._engine.load_adapter(str(version), str(folder))

    async def _retire(self, loaded: set[Version]) -> None:
        """Unload adapters that are no target. Gateways are told first, to stop asking for them."""
        wanted = self._followed.target.versions(self._tally.passed_over)
        unwanted = sorted(loaded - set(wanted), reverse=True)
        for version in unwanted[max(0, KEEP - len(wanted)) :]:
            logger.info("adapter retired", version=str(version))
            self._announcer.report(self._tally.engine_id, version, ApplyOutcome.retired, 0.0)
            self._tally.proved.discard(version)
            await self._engine.unload_adapter(str(version))
            loaded.discard(version)

    def _new_tally(self) -> AdapterTally:
        return AdapterTally(engine_id=f"{self._settings.backend}-{uuid.uuid4().hex[:12]}")
