"""What `fulgurite train --without` trains again: from which version, and on which groups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fulgurite.avro.codec import Codec
from fulgurite.enums import ArtifactFormat, LedgerTerm, UpdateKind
from fulgurite.events import Artifact, LedgerEntry, PolicyUpdate
from fulgurite.ids import owned_group
from services.cli.people import parse_people
from services.cli.prepare_retraining import run_variables
from services.cli.retraining import Retraining, find_calls, left_out_before, plan_retraining
from services.common.policies.route_targets import Published
from services.learner.config_file import load
from services.replay.errors import BadArgument
from services.replay.tenants import Tenants
from tests.services.replay.memory_log import MemoryLog
from tests.synthetic import make_call

ANN = "su_" + "a" * 26
SECRET = "0123456789abcdef"


AGAIN = "policy-again"
BEN = "su_" + "b" * 26


def update(
    step: int,
    folder: Path | None,
    kind: ArtifactFormat = ArtifactFormat.full,
    policy: str = "policy",
    topic: str = "trajectories",
) -> PolicyUpdate:
    path = None if folder is None else folder / f"{policy}@1.{step}" / "model.safetensors"
    if path is not None:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"weights")
    return PolicyUpdate(
        event_id=f"update {policy} {step}",
        event_time=step,
        policy=policy,
        kind=UpdateKind.update,
        epoch=1,
        step=step,
        version=f"{policy}@1.{step}",
        parent_version=f"{policy}@1.{step - 1}" if step > 1 else f"{policy}@0.0",
        topic=topic,
        learner_id="l",
        trained_actions=1,
        artifact=None
        if path is None
        else Artifact(uri=path.as_uri(), sha256="", size=1, format=kind),
    )


def published(*updates: PolicyUpdate, config: str | None = None) -> Published:
    found = Published()
    publish(found, *updates, config=config)
    return found


def publish(found: Published, *updates: PolicyUpdate, config: str | None = None) -> None:
    first = updates[0]
    claim = replace(
        first, event_id=f"c {first.policy}", kind=UpdateKind.claim, step=0, version=None,
        config=config,
    )  # fmt: skip
    for event in (claim, *updates):
        found.apply(event)


def trained_again(folder: Path, topic: str = "trajectories.without-x", **claimed: Any) -> Published:
    """`policy@1.1` and `policy@1.2`, and a policy that was trained again from the latter."""
    known = published(*(update(step, folder) for step in (1, 2)))
    policy = {"topic": "trajectories.without-x", "rows_of": "policy", **claimed}
    first = update(1, folder, policy=AGAIN, topic="trajectories.without-x")
    second = update(2, folder, policy=AGAIN, topic=topic)
    publish(known, first, second, config=json.dumps({"policy": policy}))
    return known


def entry(
    step: int,
    group: str,
    *actions: str,
    source: str = "learner",
    term: LedgerTerm = LedgerTerm.trained,
    policy: str = "policy",
) -> LedgerEntry:
    return LedgerEntry(
        event_id=f"{policy} {step} {group} {source}",
        event_time=1,
        policy=policy,
        group_id=group,
        term=term,
        actions=actions,
        version=f"{policy}@1.{step}",
        source=source,
    )


ENTRIES = [
    entry(1, "g1", "a#0"),
    entry(2, "g2", "b#0", "b#1"),
    entry(2, "g3", "c#0"),
    entry(3, "g4", "d#0"),
    entry(3, "g5", term=LedgerTerm.filtered),
    entry(1, "g6", source="rewarder", term=LedgerTerm.filtered),
]
CALLS = {"a": False, "b": True, "c": False, "d": True, "untrained": True}


def plan(known: Published, calls: dict[str, bool] = CALLS) -> Retraining | None:
    return plan_retraining("policy", known, ENTRIES, calls, [ANN])


def test_training_starts_from_the_version_before_the_first_of_theirs(tmp_path: Path) -> None:
    found = plan(published(*(update(step, tmp_path) for step in (1, 2, 3))))
    assert found is not None
    assert (str(found.newest), str(found.first), str(found.parent)) == (
        "policy@1.3",
        "policy@1.2",
        "policy@1.1",
    )
    assert found.weights == tmp_path / "policy@1.1" / "model.safetensors"
    assert (found.groups, found.actions, found.offline) == ({"g2", "g3", "g4", "g5"}, 3, ())


def test_where_the_parents_weights_are_gone_it_starts_earlier(tmp_path: Path) -> None:
    known = published(*(update(step, tmp_path) for step in (1, 2, 3)))
    (tmp_path / "policy@1.1" / "model.safetensors").unlink()
    found = plan(known)
    assert found is not None
    assert (str(found.parent), found.weights) == ("policy@0.0", None)
    assert found.groups == {"g1", "g2", "g3", "g4", "g5"}


def test_an_adapter_is_no_model_to_start_from(tmp_path: Path) -> None:
    found = plan(published(*(update(n, tmp_path, ArtifactFormat.lora) for n in (1, 2, 3))))
    assert found is not None
    assert str(found.parent) == "policy@0.0"


def test_the_same_people_and_version_give_the_same_names(tmp_path: Path) -> None:
    known = published(*(update(step, tmp_path) for step in (1, 2, 3)))
    first, again = plan(known), plan(known)
    other = plan_retraining("policy", known, ENTRIES, CALLS, [ANN, "su_other"])
    assert first is not None
    assert again is not None
    assert other is not None
    assert (first.topic, first.new_policy) == (again.topic, again.new_policy)
    assert first.topic == f"trajectories.without-{first.suffix}"
    assert first.new_policy != other.new_policy


def test_versions_that_learned_from_a_recording_are_named(tmp_path: Path) -> None:
    known = published(*(update(step, tmp_path) for step in (1, 2, 3)))
    entries = [*ENTRIES, entry(3, "g1", "a#0", source="offline")]
    found = plan_retraining("policy", known, entries, CALLS, [ANN])
    assert found is not None
    assert found.offline == ("policy@1.3",)


def test_nobody_is_behind_a_version(tmp_path: Path) -> None:
    known = published(*(update(step, tmp_path) for step in (1, 2, 3)))
    assert plan(known, dict.fromkeys(CALLS, False)) is None


TWICE = [
    entry(1, "g1", "a#0"),
    entry(2, "g2", "b#0"),
    entry(3, "g3", "c#0"),
    entry(1, "g3", "c#0", policy=AGAIN),
    entry(2, "g4", "d#0", policy=AGAIN),
]
FROM: dict[str, Any] = {"parent": "policy@1.2", "without": [BEN]}


def plan_again(known: Published, *theirs: str) -> Retraining | None:
    calls = {call: call in theirs for call in "abcd"}
    return plan_retraining(AGAIN, known, TWICE, calls, [ANN, BEN])


def test_a_policy_that_was_trained_again_knows_what_its_parent_knows(tmp_path: Path) -> None:
    known = trained_again(tmp_path, **FROM)
    found = plan_again(known, "b")
    assert found is not None
    assert (str(found.newest), str(found.first), str(found.parent)) == (
        f"{AGAIN}@1.2",
        "policy@1.2",
        "policy@1.1",
    )
    assert found.weights == tmp_path / "policy@1.1" / "model.safetensors"
    assert (found.groups, found.rows_of) == ({"g2", "g3", "g4"}, "policy")
    assert left_out_before(AGAIN, known) == (BEN,)
    assert left_out_before("policy", known) == ()
    first = plan_again(known, "a")
    assert first is not None
    assert (str(first.parent), first.weights) == ("policy@0.0", None)
    assert plan_again(known) is None


def test_what_it_was_trained_on_was_generated_by_its_parents_policy(tmp_path: Path) -> None:
    found = plan_again(trained_again(tmp_path, **FROM), "d")
    assert found is not None
    assert (str(found.parent), found.groups, found.rows_of) == (f"{AGAIN}@1.1", {"g4"}, "policy")
    found = plan_again(trained_again(tmp_path / "base", parent="policy@0.0"), "c")
    assert found is not None
    assert (str(found.parent), found.rows_of) == (f"{AGAIN}@0.0", "policy")


def test_the_claim_of_the_new_policy_says_parent_and_people(tmp_path: Path) -> None:
    known = trained_again(tmp_path, **FROM)
    found = plan_again(known, "b")
    assert found is not None
    config = load(None, {"FULGURITE_MODEL": "/base"})
    variables = run_variables(found, config, [ANN, BEN], None)
    claimed = load(None, {"FULGURITE_MODEL": "/base", **variables}).resolved()
    first = update(1, tmp_path, policy=found.new_policy, topic=found.topic)
    publish(known, first, config=claimed)
    assert left_out_before(found.new_policy, known) == (ANN, BEN)
    calls = {call: call == "a" for call in "abcd"}
    entries = [*TWICE, entry(1, "g3", "c#0", policy=found.new_policy)]
    again = plan_retraining(found.new_policy, known, entries, calls, [ANN, BEN])
    assert again is not None
    assert (str(again.first), again.rows_of) == ("policy@1.1", "policy")


def test_the_calls_of_two_policies_are_not_trained_at_a_time(tmp_path: Path) -> None:
    known = trained_again(tmp_path, topic="trajectories", **FROM)
    with pytest.raises(BadArgument, match=rf"{AGAIN}@1\.2 on calls of {AGAIN} were trained"):
        plan_again(known, "b")
    found = plan_again(known, "d")
    assert found is not None
    assert found.rows_of == AGAIN


def test_a_claim_that_does_not_say_from_which_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match="does not say from which version"):
        plan_again(trained_again(tmp_path), "b")


def test_a_claim_that_cannot_be_read_names_no_parent(tmp_path: Path) -> None:
    known = published(update(1, tmp_path), update(2, tmp_path), config="{")
    assert left_out_before("policy", known) == ()


def test_calls_that_are_gone_are_nobodys(tmp_path: Path) -> None:
    known = published(*(update(step, tmp_path) for step in (1, 2, 3)))
    with pytest.raises(BadArgument, match=r"2 calls that policy@1\.2 .* --archive DIR"):
        plan(known, {"a": False, "c": False, "d": True})


def test_a_policy_without_versions() -> None:
    with pytest.raises(BadArgument, match="no version of 'policy'"):
        plan(Published())


def test_the_calls_of_an_episode_are_all_theirs() -> None:
    log = MemoryLog()
    first = make_call(1, 0, 0)
    second = replace(make_call(1, 0, 1), subject=ANN)
    other = make_call(1, 1, 0)
    owned = replace(make_call(2, 0, 0), group_id=owned_group(1, b"12345", "owner", b"secret"))
    log.append(first, second, other, owned)
    tenants = Tenants(owners=frozenset({"owner"}), secrets=(b"secret",))
    found = find_calls(log, Codec(), {ANN}, tenants)
    assert found == {
        first.call_id: True,
        second.call_id: True,
        other.call_id: False,
        owned.call_id: True,
    }


def test_people_are_subjects_and_tenants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FULGURITE_SIGNING_KEYS", f"k1:{SECRET}")
    owner = "0" * 64
    subjects, tenants = parse_people([ANN, owner])
    assert subjects == {ANN}
    assert tenants == Tenants(owners=frozenset({owner}), secrets=(SECRET.encode(),))
    for wrong in ("ann", "su_1", "f" * 63, "gr_" + "0" * 26):
        with pytest.raises(BadArgument, match="neither a subject nor a tenant"):
            parse_people([wrong])
    monkeypatch.delenv("FULGURITE_SIGNING_KEYS")
    assert parse_people([ANN]) == (frozenset({ANN}), Tenants())
    with pytest.raises(BadArgument, match="needs FULGURITE_SIGNING_KEYS"):
        parse_people([owner])
