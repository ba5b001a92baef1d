"""What becomes of adapters, on an engine that is a dictionary: which are loaded, told, kept,
retired and brought back.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from fulgurite.avro.codec import Codec
from fulgurite.enums import ApplyOutcome, ArtifactFormat, UpdateKind
from fulgurite.events import Artifact, PolicyRoute, PolicyUpdate, Probe, RouteTarget
from fulgurite.tokens import pack_ids, pack_logprobs
from fulgurite.versions import Version
from services.applier.adapters import KEEP, AdapterKeeper
from services.applier.announcer import Announcer
from services.applier.engine import Engine
from services.applier.errors import EngineRefused, EngineUnreachable
from services.applier.log_watch import Followed
from services.applier.settings import ApplierSettings
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.runtime import metrics

APPLIED, FAILED, RETIRED = ApplyOutcome.applied, ApplyOutcome.failed, ApplyOutcome.retired

NO_TENSORS = (2).to_bytes(8, "little") + b"{}"
"""A safetensors file with nothing in it."""


class DictEngine(Engine):
    """Adapters are folders; a folder's name is the log-probability of every token."""

    def __init__(self) -> None:
        super().__init__("http://nowhere")
        self.held: dict[str, str] = {}
        self.away = False
        self.refuses: set[str] = set()

    async def adapters(self) -> list[str]:
        if self.away:
            raise EngineUnreachable("nobody answers")
        return ["somebody-elses", *self.held]

    async def load_adapter(self, name: str, folder: str) -> None:
        if name in self.refuses:
            raise EngineRefused("400 rank 64 is more than --max-lora-rank")
        self.held[name] = folder

    async def unload_adapter(self, name: str) -> None:
        del self.held[name]

    async def prompt_logprobs(
        self, token_ids: Sequence[int], model: str | None = None
    ) -> list[float]:
        return [float(Path(self.held[model or ""]).name)] * (len(token_ids) - 1)


class Notes(Announcer):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ApplyOutcome, str | None]] = []
        self.engines: list[str] = []

    def report(
        self, engine_id: str, version: Version, outcome: ApplyOutcome, seconds: float, *, previous: str | None = None,
        error: str | None = None, difference: float | None = None,
    ) -> None:  # fmt: skip
        self.told.append((str(version).removeprefix("writer@1."), outcome, error))
        self.engines.append(engine_id)


class Bench:
    """A keeper of the policy `writer`, and the log that it follows."""

    def __init__(self, folder: Path) -> None:
        self.engine, self.notes, self.followed, self._folder = (
            DictEngine(),
            Notes(),
            Followed("writer"),
            folder,
        )
        settings = ApplierSettings.model_validate({"FULGURITE_APPLIER_CHECK_INTERVAL_S": 0.005})
        self.base = asyncio.Event()
        self.base.set()
        self.keeper = AdapterKeeper(
            "writer", settings, self.engine, self.followed, self.notes, self.base
        )
        self.says(self._event(UpdateKind.claim, 0))

    def says(self, event: PolicyUpdate | PolicyRoute) -> None:
        self.followed.apply(event)

    def update(
        self, step: int, *, trained: float = -1.0, served: float = -1.0, damaged: bool = False
    ) -> None:
        folder = self._folder / str(step) / str(served)
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
        path = folder / "adapter_model.safetensors"
        path.write_bytes(NO_TENSORS)
        digest = "0" * 64 if damaged else hashlib.sha256(NO_TENSORS).hexdigest()
        artifact = Artifact(
            uri=path.as_uri(), sha256=digest, size=len(NO_TENSORS), format=ArtifactFormat.lora
        )
        probe = Probe(token_ids=pack_ids([1, 2, 3]), logprobs=pack_logprobs([trained] * 2))
        self.says(self._event(UpdateKind.update, step, artifact, probe))

    def route(self, **shares: float) -> None:
        targets = tuple(
            RouteTarget(policy="writer", version=f"writer@1.{n[1:]}", weight=share)
            for n, share in shares.items()
        )
        self.says(
            PolicyRoute(
                event_id="r", event_time=1, alias="sql", targets=targets, reason="", author=""
            )
        )

    def held(self) -> list[str]:
        return sorted(name.removeprefix("writer@1.") for name in self.engine.held)

    async def until(self, holds: Callable[[], bool]) -> None:
        for _ in range(400):
            if holds():
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"told {self.notes.told}, held {self.held()}")

    async def wait(self, step: int, outcome: ApplyOutcome, times: int = 1) -> None:
        await self.until(
            lambda: [told[:2] for told in self.notes.told].count((str(step), outcome)) >= times
        )

    @staticmethod
    def _event(
        kind: UpdateKind, step: int, artifact: Artifact | None = None, probe: Probe | None = None
    ) -> PolicyUpdate:
        return PolicyUpdate(
            event_id=f"{kind}{step}", event_time=1, policy="writer", kind=kind, epoch=1, step=step, learner_id="l", trained_actions=1,
            artifact=artifact, probe=probe,
        )  # fmt: skip


@asynccontextmanager
async def running(folder: Path) -> AsyncGenerator[Bench]:
    bench = Bench(folder)
    task = asyncio.create_task(bench.keeper.run())
    try:
        yield bench
    finally:
        task.cancel()


async def test_the_newest_is_served_and_the_last_few_stay(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        for step in range(1, 7):
            bench.update(step)
            await bench.wait(step, APPLIED)
        await bench.wait(6 - KEEP, RETIRED)
        assert bench.held() == ["4", "5", "6"]
        assert len(set(bench.notes.engines)) == 1


async def test_what_a_route_names_is_never_retired_and_is_brought_back(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.route(v2=0.5, v9=0.5)
        for step in range(1, 7):
            bench.update(step)
            await bench.wait(step, APPLIED)
        assert {"2", "6"} <= set(bench.held())
        bench.route(v1=1.0)
        await bench.wait(1, APPLIED, times=2)
        assert "1" in bench.held()
        await bench.wait(2, RETIRED)


async def test_what_cannot_be_served_is_told_once_and_the_one_before_stays(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.update(1)
        await bench.wait(1, APPLIED)
        bench.update(2, served=-3.0)
        await bench.wait(2, FAILED)
        bench.engine.refuses.add("writer@1.3")
        bench.update(3)
        await bench.wait(3, FAILED)
        bench.update(4, damaged=True)
        await bench.wait(4, FAILED)
        await asyncio.sleep(0.05)
        assert bench.held() == ["1"]
        assert [told[0] for told in bench.notes.told] == ["1", "2", "3", "4"]
        reasons = " ".join(error or "" for _, _, error in bench.notes.told)
        assert all(
            reason in reasons for reason in ("log-probabilities", "max-lora-rank", "SHA-256")
        )


@pytest.mark.parametrize("seen_away", [True, False])
async def test_a_restarted_engine_gets_its_adapters_back_under_a_new_id(
    tmp_path: Path, seen_away: bool
) -> None:
    async with running(tmp_path) as bench:
        bench.route(v1=1.0)
        for step in (1, 2):
            bench.update(step)
            await bench.wait(step, APPLIED)
        before = set(bench.notes.engines)
        bench.engine.away = seen_away
        bench.engine.held.clear()
        await asyncio.sleep(0.05)
        bench.engine.away = False
        for step in (1, 2):
            await bench.wait(step, APPLIED, times=2)
        assert bench.held() == ["1", "2"]
        assert len(set(bench.notes.engines) - before) == 1


async def test_an_adapter_that_was_refused_is_tried_again_on_a_restarted_engine(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as bench:
        bench.engine.refuses.add("writer@1.1")
        bench.update(1)
        await bench.wait(1, FAILED)
        bench.engine.away = True
        bench.engine.refuses.clear()
        await asyncio.sleep(0.05)
        bench.engine.away = False
        await bench.wait(1, APPLIED)


async def test_what_an_applier_before_has_left_is_proved_anew(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.update(1)
        await bench.wait(1, APPLIED)
        folder = bench.engine.held["writer@1.1"]
    async with running(tmp_path / "second") as bench:
        bench.engine.held["writer@1.1"] = folder
        bench.engine.held["writer@1.0"] = folder
        bench.update(1)
        await bench.wait(1, APPLIED)
        assert "writer@1.0" in bench.engine.held


async def test_adapters_wait_for_the_weights_below_them(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.base.clear()
        await asyncio.sleep(0.02)
        bench.update(1)
        await asyncio.sleep(0.05)
        assert bench.notes.told == []
        bench.base.set()
        await bench.wait(1, APPLIED)


def test_what_is_told_names_the_policy_and_the_backend() -> None:
    producer = EventProducer(KafkaSettings(bootstrap_servers="127.0.0.1:9"), Codec(), "test")
    try:
        announcer = Announcer("east", producer, {"writer"})
        announcer.report("east-1", Version("writer", 1, 3), APPLIED, 0.5, difference=0.01)
        event = announcer._outbox.get_nowait()  # pyright: ignore[reportPrivateUsage]
    finally:
        producer.close()
    assert (event.policy, event.backend, event.version, event.probe_error) == (
        "writer",
        "east",
        "writer@1.3",
        0.01,
    )


def test_outcomes_are_counted_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.common.runtime.metrics._values", {})
    Announcer("east", cast(Any, None), {"writer"})
    assert metrics.values()["fulgurite_applied_total"] == {
        ("writer", outcome): 0 for outcome in ("applied", "failed", "retired")
    }


async def test_a_route_has_a_version_tried_again(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.engine.refuses.add("writer@1.1")
        bench.update(1)
        await bench.wait(1, FAILED)
        bench.engine.refuses.clear()
        bench.route(v1=1.0)
        await bench.wait(1, APPLIED)
