"""The console's actions on a real log: routes and redriven events are those of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fulgurite.enums import ArtifactFormat, UpdateKind
from fulgurite.events import Artifact, DeadLetter, Event, PolicyUpdate
from fulgurite.topics import AGENT_REWARDS, DEAD_LETTERS, POLICY_UPDATES, Topic
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import read_all
from services.common.policies.route_log import last_routes
from services.console.operator import operator_actions
from services.console.pages.actions import ActionRefused
from services.local_stack.kafka_local import LocalKafka
from tests.integration.test_cli import Cli, publish
from tests.synthetic import make_reward

pytestmark = pytest.mark.engine


@pytest.fixture
def cli(kafka: LocalKafka, topic_prefix: str) -> Cli:
    made = Cli(kafka, topic_prefix)
    assert made("topics", "create").returncode == 0
    return made


def make_update(step: int, folder: Path, kind: UpdateKind = UpdateKind.update) -> PolicyUpdate:
    path = folder / "policy" / f"1.{step}" / "model.safetensors"
    is_update = kind is UpdateKind.update
    return PolicyUpdate(
        event_id=f"{kind} {step}",
        event_time=step,
        policy="policy",
        kind=kind,
        epoch=1,
        step=step,
        version=f"policy@1.{step}" if is_update else None,
        learner_id="l",
        trained_actions=1,
        artifact=Artifact(uri=path.as_uri(), sha256="0", size=1, format=ArtifactFormat.full)
        if is_update
        else None,
    )


def test_versions_are_promoted_tried_and_rolled_back(cli: Cli, tmp_path: Path) -> None:
    updates: list[tuple[Topic, Event]] = [
        (POLICY_UPDATES, make_update(0, tmp_path, UpdateKind.claim)),
        *((POLICY_UPDATES, make_update(step, tmp_path)) for step in (1, 2, 3)),
    ]
    publish(cli.settings, updates)
    for step in (2, 3):
        weights = tmp_path / "policy" / f"1.{step}" / "model.safetensors"
        weights.parent.mkdir(parents=True)
        weights.touch()
    actions = operator_actions(cli.settings)
    with pytest.raises(ActionRefused, match="its weights are gone"):
        actions["promote"]({"version": "policy@1.1", "alias": "policy"})
    with pytest.raises(ActionRefused, match="never published"):
        actions["promote"]({"version": "policy@7.7", "alias": "policy"})
    assert "serves policy" in actions["promote"]({"version": "policy@1.2", "alias": "policy"})
    canary = {"version": "policy@1.3", "alias": "policy", "share": "0.1", "reason": "a trial"}
    assert "10%" in actions["canary"](canary)
    route = last_routes(cli.settings)["policy"]
    assert [(one.version, round(one.weight, 3)) for one in route.targets] == [
        ("policy@1.2", 0.9),
        ("policy@1.3", 0.1),
    ]
    assert (route.reason, route.author.endswith("(console)")) == ("a trial", True)
    assert "a trial" in cli("routes", "list").stdout
    assert actions["roll_back"]({"alias": "policy"}) == "policy is back at policy@1.2."
    assert [one.version for one in last_routes(cli.settings)["policy"].targets] == ["policy@1.2"]
    # An alias without a route returns to the version before its policy's newest.
    with pytest.raises(ActionRefused, match="writer has no version yet"):
        actions["roll_back"]({"alias": "writer"})
    found = actions["roll_back"]({"alias": "writer", "policy": "policy"})
    assert found == "writer is back at policy@0.0."


def test_dead_letters_are_sent_back(cli: Cli) -> None:
    reward = make_reward(1, 0)
    letters: list[tuple[Topic, Event]] = [
        (
            DEAD_LETTERS,
            DeadLetter(
                event_id=name,
                event_time=1,
                stage="rewarder",
                error_type="E",
                error="e",
                topic=cli.settings.topic(AGENT_REWARDS),
                partition=0,
                offset=0,
                key=b"g",
                value=value,
            ),
        )
        for name, value in (("good", make_codec().encode(reward)), ("bad", b"nonsense"))
    ]
    publish(cli.settings, letters)
    actions = operator_actions(cli.settings)
    assert actions["redrive"]({"letter": "good"}) == "1 sent back to agent.rewards"
    with pytest.raises(ActionRefused, match="MalformedFrame"):
        actions["redrive"]({"letter": "bad"})
    with pytest.raises(ActionRefused, match="no dead letter other"):
        actions["redrive"]({"letter": "other"})
    assert "1 could not be" in actions["redrive_stage"]({"stage": "rewarder"})
    sent = [record.event for record in read_all(cli.settings, AGENT_REWARDS, make_codec())]
    assert sent == [reward, reward]
