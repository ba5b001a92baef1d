"""Which weights an engine is given, on an engine that is a label: newest, pinned, kept, and never a
newer one than was asked for.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fulgurite.enums import ApplyOutcome, ArtifactFormat, UpdateKind
from fulgurite.events import Artifact, PolicyRoute, PolicyUpdate, RouteTarget
from fulgurite.versions import Version
from services.applier.announcer import Announcer
from services.applier.applier import UNTOUCHED, PolicyApplier
from services.applier.engine import Engine
from services.applier.log_watch import Followed
from services.applier.settings import ApplierSettings

APPLIED, FAILED = ApplyOutcome.applied, ApplyOutcome.failed


class LabelledEngine(Engine):
    """Its weights are the name of their version."""

    def __init__(self) -> None:
        super().__init__("http://nowhere")
        self.label = UNTOUCHED
        self.loaded: list[str] = []

    async def weight_version(self) -> str:
        return self.label

    async def is_paused(self) -> bool:
        return False

    async def read_ahead(self, path: str) -> None:
        pass

    async def load(self, path: str, version: str, *, rollback: bool = False) -> float:
        self.label = version
        self.loaded.append(version)
        return 0.0

    async def prompt_logprobs(
        self, token_ids: Sequence[int], model: str | None = None
    ) -> list[float]:
        return []


class Notes(Announcer):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ApplyOutcome, str | None, str]] = []

    def report(
        self, engine_id: str, version: Version, outcome: ApplyOutcome, seconds: float, *, previous: str | None = None,
        error: str | None = None, difference: float | None = None,
    ) -> None:  # fmt: skip
        self.told.append((str(version), outcome, previous, error or ""))


class Bench:
    """An applier of the policy `policy`, and the log that it follows."""

    def __init__(self, folder: Path) -> None:
        self.engine, self.notes, self.followed, self._folder = (
            LabelledEngine(),
            Notes(),
            Followed("policy"),
            folder,
        )
        settings = ApplierSettings.model_validate({"FULGURITE_APPLIER_CHECK_INTERVAL_S": 0.005})
        self.applier = PolicyApplier(settings, self.engine, self.followed, self.notes)
        self.followed.apply(self._event(UpdateKind.claim, 0))

    def update(self, *steps: int) -> None:
        for step in steps:
            path = self.file(step)
            path.write_bytes(b"weights")
            digest = hashlib.sha256(b"weights").hexdigest()
            artifact = Artifact(
                uri=path.as_uri(), sha256=digest, size=7, format=ArtifactFormat.full
            )
            self.followed.apply(self._event(UpdateKind.update, step, artifact))

    def file(self, step: int) -> Path:
        return self._folder / f"{step}.safetensors"

    def route(self, version: str) -> None:
        target = RouteTarget(policy="policy", version=version, weight=1.0)
        self.followed.apply(
            PolicyRoute(
                event_id="r", event_time=1, alias="policy", targets=(target,), reason="", author=""
            )
        )

    async def until(self, holds: Callable[[], bool]) -> None:
        for _ in range(400):
            if holds():
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"told {self.notes.told}, serves {self.engine.label}")

    async def wait(self, version: str, outcome: ApplyOutcome, times: int = 1) -> None:
        await self.until(
            lambda: [told[:2] for told in self.notes.told].count((version, outcome)) >= times
        )

    @staticmethod
    def _event(kind: UpdateKind, step: int, artifact: Artifact | None = None) -> PolicyUpdate:
        return PolicyUpdate(
            event_id=f"{kind}{step}", event_time=1, policy="policy", kind=kind, epoch=1, step=step, learner_id="l", trained_actions=1,
            artifact=artifact,
        )  # fmt: skip


@asynccontextmanager
async def running(folder: Path) -> AsyncGenerator[Bench]:
    bench = Bench(folder)
    task = asyncio.create_task(bench.applier.run())
    try:
        yield bench
    finally:
        task.cancel()


async def test_a_route_to_a_pruned_version_leaves_what_is_served_and_says_so(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as bench:
        bench.update(2, 6)
        await bench.wait("policy@1.6", APPLIED)
        bench.route("policy@1.6")
        bench.update(7, 8)
        bench.file(2).unlink()
        bench.route("policy@1.2")
        await bench.wait("policy@1.2", FAILED)
        await asyncio.sleep(0.05)
        assert bench.engine.loaded == ["policy@1.6"]
        _, _, previous, error = bench.notes.told[-1]
        assert previous == "policy@1.6"
        assert "cannot be read" in error
        bench.update(2)  # the file is back, and the version is asked for again
        bench.route("policy@1.2")
        await bench.wait("policy@1.2", APPLIED)


async def test_a_route_to_what_was_never_published_is_told_once(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.update(1)
        await bench.wait("policy@1.1", APPLIED)
        bench.route("policy@7.7")
        await bench.wait("policy@7.7", FAILED)
        await asyncio.sleep(0.05)
        assert [told[0] for told in bench.notes.told].count("policy@7.7") == 1
        assert "never published" in bench.notes.told[-1][3]
        bench.update(2)
        await asyncio.sleep(0.05)
        assert bench.engine.loaded == ["policy@1.1"], "a pinned alias does not follow the newest"


async def test_a_restarted_engine_is_not_given_a_newer_version_than_was_asked_for(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as bench:
        bench.update(1, 2, 3)
        bench.route("policy@1.2")
        await bench.wait("policy@1.2", APPLIED)
        bench.file(2).unlink()
        bench.engine.label = UNTOUCHED
        await bench.wait("policy@1.2", FAILED)
        await bench.wait("policy@1.1", APPLIED)
        assert "policy@1.3" not in bench.engine.loaded


async def test_of_the_newest_the_one_before_takes_the_place(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.update(1)
        await bench.wait("policy@1.1", APPLIED)
        bench.update(2)
        bench.file(2).write_bytes(b"damaged")
        await bench.wait("policy@1.2", FAILED)
        await asyncio.sleep(0.05)
        assert bench.engine.loaded == ["policy@1.1"]
