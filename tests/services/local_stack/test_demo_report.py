"""What a demo says of its training."""

from __future__ import annotations

import io
from collections.abc import Iterator

import msgspec
import pytest

from fulgurite.enums import UpdateKind
from fulgurite.events import Event, PolicyUpdate
from fulgurite.topics import AGENT_STATUS, LLM_CALLS, POLICY_UPDATES, Topic
from services.common.kafka.consumer import Record
from services.common.kafka.settings import KafkaSettings
from services.common.runtime.terminal import EscapingConsole
from services.local_stack import demo
from services.local_stack.demo_report import LedgerReport, Phases, Report, show
from services.runner.scoreboard import CurvePoint
from tests.synthetic import make_call, make_declared

REPORT = Report(
    title="a demo", seed=0, control=False, reward_before=0.1, reward_before_interval=(0.0, 0.2), reward_after=0.8,
    reward_after_interval=(None, None), greedy_before=0.2, greedy_before_interval=(0.1, 0.3), greedy_after=0.9,
    greedy_after_interval=(0.8, 1.0), components_before={"style": 0.1}, components_after={}, held_out=9, updates=1, version="policy@0.1",
    first_rollout_to_last_update_s=235.4, idle_share=0.124, curve=[CurvePoint("policy@0.0", 0.1, 6)], updated_at_s=[235.4], rollouts={},
    calls=1, trajectories=1, ledger=LedgerReport(actions=1, terms={"trained": 1}, remainder=0), peak_memory_mib=1,
    phases=Phases(install=0, warm_start=0, start=1, train=2, evaluate=3),
)  # fmt: skip


@pytest.mark.parametrize(
    ("share", "expected"), [(0.124, "235 s, 12% of it idle"), (None, "last update 235 s")]
)
def test_the_idle_share_stands_beside_the_seconds(share: float | None, expected: str) -> None:
    written = io.StringIO()
    report = msgspec.structs.replace(REPORT, idle_share=share)
    show(report, EscapingConsole(file=written, width=300, highlight=False), {})
    [line] = [line for line in written.getvalue().splitlines() if "first rollout" in line]
    assert line.rstrip().endswith(expected)


def test_the_idle_share_is_that_of_the_runs_own_events(monkeypatch: pytest.MonkeyPatch) -> None:
    call = msgspec.structs.replace(make_call(0), started_at=1_000, finished_at=5_000)
    update = PolicyUpdate(
        event_id="u", event_time=11_000, policy="policy", kind=UpdateKind.update, epoch=0, step=1, version="policy@0.1",
        learner_id="learner", trained_actions=1, metrics={"step_seconds": 3.0},
    )  # fmt: skip
    log: dict[Topic, list[Event]] = {
        AGENT_STATUS: [make_declared(at=1_000, run_id="run-1"), make_declared(1, at=5, run_id="2")],
        LLM_CALLS: [call],
        POLICY_UPDATES: [update],
    }

    def read_all(_kafka: KafkaSettings, topic: Topic, _codec: object) -> Iterator[Record]:
        for offset, event in enumerate(log[topic]):
            yield Record(0, offset, 0, None, b"", event, None)

    monkeypatch.setattr(demo, "read_all", read_all)
    share = demo.read_idle_share(KafkaSettings(), "run-1", "policy@0.1")
    assert share == pytest.approx(0.3)
