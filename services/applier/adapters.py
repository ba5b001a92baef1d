"""Keeps one policy's LoRA adapters in an engine, several versions at once, each under its immutable
name `policy@epoch.step`.

Each round compares what the log desires (the newest version, and all that routes name) with the
adapters that the engine lists. A missing one is checked, loaded and proved, then told in
`policy.applied`; one that nobody wants is told as retired and unloaded, but the last few stay, for
calls that are on their way. One that cannot be served is told once and passed over until the engine
restarts or a route asks for it again. An engine that was away, or lacks what it was given, has
restarted: it gets a new id, and its adapters back.
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
from services.common.runtime import logs

logger = logs.get(__name__)

KEEP = 3
"""At least so many versions stay loaded, though nobody may want the older ones any more: calls are
on their way to them.
"""


class AdapterTally(msgspec.Struct):
    """What is known of the engine since it was last seen to start."""

    engine_id: str
    proved: set[Version] = msgspec.field(default_factory=set[Version])
    passed_over: set[Version] = msgspec.field(default_factory=set[Version])


class AdapterKeeper:
    """One policy's adapters; `run` until cancelled."""

    def __init__(
        self,
        policy: str,
        settings: ApplierSettings,
        engine: Engine,
        followed: Followed,
        announcer: Announcer,
        base: asyncio.Event,
    ) -> None:
        """`base`: set while the engine has the base weights that it should have."""
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
        """The loop, once the log is read."""
        while True:
            await self._base.wait()
            self._followed.changed.clear()
            try:
                await self._round()
                if self._away:
                    logger.info("the engine answers", policy=self._policy)
                self._away = False
            except (EngineUnreachable, EngineRefused) as error:
                if not self._away:
                    logger.warning(
                        "the engine does not answer as it should; trying until it does",
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
        """This policy's adapters, as the engine lists them."""
        found: set[Version] = set()
        for name in await self._engine.adapters():
            with contextlib.suppress(MalformedVersion):
                version = parse_version(name)
                if version.policy == self._policy:
                    found.add(version)
        return found

    async def _bring(self, version: Version, loaded: set[Version]) -> None:
        """Load what is missing, prove it, tell. One that is there already was given by an applier
        that died, and is proved again.
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
            logger.error("adapter not served", version=str(version), error=str(error))
            seconds = time.monotonic() - started
            self._announcer.tell(
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
            # At once: another version may have to take its place.
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
        self._announcer.tell(
            self._tally.engine_id, version, ApplyOutcome.applied, seconds, difference=found
        )

    async def _load(self, version: Version) -> None:
        artifact = self._followed.target.updates[version].artifact
        if artifact is None:
            raise BadArtifact(f"the update {version} names no artifact")
        folder = await asyncio.to_thread(fetch_adapter, artifact)
        logger.info("loading adapter", version=str(version))
        await self._engine.load_adapter(str(version), str(folder))

    async def _retire(self, loaded: set[Version]) -> None:
        """Told first: no gateway shall ask for what is about to go."""
        wanted = self._followed.target.versions(self._tally.passed_over)
        unwanted = sorted(loaded - set(wanted), reverse=True)
        for version in unwanted[max(0, KEEP - len(wanted)) :]:
            logger.info("adapter retired", version=str(version))
            self._announcer.tell(self._tally.engine_id, version, ApplyOutcome.retired, 0.0)
            self._tally.proved.discard(version)
            await self._engine.unload_adapter(str(version))
            loaded.discard(version)

    def _new_tally(self) -> AdapterTally:
        return AdapterTally(engine_id=f"{self._settings.backend}-{uuid.uuid4().hex[:12]}")
