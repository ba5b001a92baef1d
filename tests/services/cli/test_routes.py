"""What is a route, as an operator writes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fulgurite.enums import ArtifactFormat, UpdateKind
from fulgurite.events import Artifact, PolicyUpdate, RouteTarget
from fulgurite.prompts.history import PromptHistory
from services.cli.main import app
from services.common.policies.route_targets import (
    BadTarget,
    Published,
    check_alias,
    check_prompts,
    check_upstreams,
    missing_file,
    parse_targets,
)
from tests.fulgurite.prompts.prompt_updates import version


def test_shares_and_the_newest() -> None:
    assert parse_targets(["policy@1.3=0.9", "policy=0.1"]) == (
        RouteTarget(policy="policy", version="policy@1.3", weight=0.9),
        RouteTarget(policy="policy", version=None, weight=0.1),
    )
    assert parse_targets(["a-b.c@0.0"]) == (
        RouteTarget(policy="a-b.c", version="a-b.c@0.0", weight=1.0),
    )


def test_upstreams_and_parameters() -> None:
    assert parse_targets(
        ["policy,temperature=0.7,top_k=20=0.5", "upstream:a/b@c=0.25", "policy=0.25"]
    ) == (
        RouteTarget(policy="policy", weight=0.5, parameters={"temperature": 0.7, "top_k": 20.0}),
        RouteTarget(policy="", upstream="a/b@c", weight=0.25),
        RouteTarget(policy="policy", weight=0.25),
    )


def test_prompts() -> None:
    assert parse_targets(
        ["policy,prompt@2=0.5", "policy@1.3,prompt@none,temperature=0.7=0.25", "policy=0.25"]
    ) == (
        RouteTarget(policy="policy", weight=0.5, prompt="prompt@2"),
        RouteTarget(
            policy="policy", version="policy@1.3", weight=0.25, prompt="none",
            parameters={"temperature": 0.7},
        ),
        RouteTarget(policy="policy", weight=0.25),
    )  # fmt: skip
    (target,) = parse_targets(["upstream:gpt,prompt@1"])
    assert (target.prompt, target.weight) == ("prompt@1", 1.0)
    for wrong in ("policy,prompt@x=1", "policy,prompt@1,prompt@2=1", "policy,prompt@0"):
        with pytest.raises(BadTarget, match="prompt"):
            parse_targets([wrong])


def test_a_prompt_version_that_the_alias_lacks_is_refused() -> None:
    history = PromptHistory()
    history.apply(version(1, alias="odd", system="New."))
    check_prompts("odd", parse_targets(["a,prompt@1=1", "a,prompt@none=1", "a=1"]), history)
    with pytest.raises(BadTarget, match=r"'odd' has no prompt@2; .* are: prompt@1"):
        check_prompts("odd", parse_targets(["a,prompt@2"]), history)
    with pytest.raises(BadTarget, match=r"versions are: none"):
        check_prompts("other", parse_targets(["a,prompt@2"]), history)


def test_whole_numbers_are_relative_shares_and_fractions_add_up_to_one() -> None:
    assert [target.weight for target in parse_targets(["policy@1.3=9", "policy=1"])] == [9, 1]
    assert len(parse_targets(["policy@1.1=0.1", "policy@1.2=0.2", "policy=0.7"])) == 3
    with pytest.raises(BadTarget, match=r"add up to 1\.1: fractions"):
        parse_targets(["policy@1.3=0.9", "policy=0.2"])


def test_an_upstream_that_the_gateway_lacks_is_refused() -> None:
    targets = parse_targets(["policy=0.5", "upstream:gpt=0.5"])
    check_upstreams(targets, ["gpt"])
    with pytest.raises(BadTarget, match=r"no upstream 'gpt'; FULGURITE_UPSTREAMS has: big"):
        check_upstreams(targets, ["big"])
    check_alias("big", {"big": None}, upstreams_only=True)


@pytest.mark.parametrize(
    "targets",
    [
        ["policy@1=1"],
        ["policy@1.3=x"],
        ["policy@1.3=-1"],
        ["policy=inf"],
        ["policy=nan"],
        ["=1"],
        ["p q=1"],
        ["policy=0"],
        [],
        ["p", "p=2"],
        ["policy@1.3=0.9", "policy=0.2"],
        ["policy=0.5"],
        ["upstream:=1"],
        ["upstream:a b=1"],
        ["policy,temperature=0.5"],
        ["policy,temperature=hot=1"],
        ["policy,temperature=-1=1"],
        ["policy,top_k=0.5=1"],
        ["policy,max_tokens=5=1"],
        ["policy,top_p=0.5,temperature=1"],
        ["policy,temperature=1=1", "policy,temperature=1.0=1"],
    ],
)
def test_what_is_none(targets: list[str]) -> None:
    with pytest.raises(BadTarget):
        parse_targets(targets)


def test_a_slip_of_the_pen_is_said_before_anything_is_asked() -> None:
    done = CliRunner().invoke(app, ["routes", "set", "policy", "policy@one"])
    assert done.exit_code == 1
    assert "policy@one" in done.output


@pytest.mark.parametrize("command", ["set", "clear", "list"])
def test_every_command_explains_itself(command: str) -> None:
    done = CliRunner().invoke(app, ["routes", command, "--help"])
    assert done.exit_code == 0
    assert "alias" in done.output


def published(folder: Path, *steps: int, uri: str | None = None) -> Published:
    """Versions of `policy`, of which the files lie in the folder."""
    found = Published()
    for step in (0, *steps):
        file = folder / f"1.{step}" / "model.safetensors"
        artifact = Artifact(uri=uri or file.as_uri(), sha256="", size=1, format=ArtifactFormat.full)
        kind = UpdateKind.update if step else UpdateKind.claim
        event = PolicyUpdate(
            event_id=f"u{step}", event_time=1, policy="policy", kind=kind, epoch=1, step=step, learner_id="l", trained_actions=1,
            artifact=artifact if step else None,
        )  # fmt: skip
        found.apply(event)
        if step:
            file.parent.mkdir(parents=True)
            file.write_bytes(b"weights")
    return found


def refused(found: Published, target: str) -> str:
    with pytest.raises(BadTarget) as error:
        found.check(parse_targets([target])[0], {"policy"})
    return str(error.value)


def test_what_was_published_and_is_there_may_be_routed_to(tmp_path: Path) -> None:
    found = published(tmp_path, 1, 8)
    for target in ("policy@1.8", "policy@0.0", "policy"):
        found.check(parse_targets([target])[0], {"policy"})


def test_a_version_whose_weights_were_removed_is_refused_and_those_left_are_named(
    tmp_path: Path,
) -> None:
    found = published(tmp_path, 2, 7, 8)
    (tmp_path / "1.2" / "model.safetensors").unlink()
    message = refused(found, "policy@1.2")
    assert "weights are gone" in message
    assert "publish.keep" in message
    assert "policy@1.7, policy@1.8" in message


def test_a_forgotten_policy_an_unknown_one_and_an_unpublished_version_are_told_apart(
    tmp_path: Path,
) -> None:
    found = published(tmp_path, 8)
    assert "policy@1.8" in refused(found, "1.8")
    assert "the policies are: policy" in refused(found, "polisy")
    assert "newest is policy@1.8" in refused(found, "policy@7.7")


def test_weights_that_lie_elsewhere_are_not_missed(tmp_path: Path) -> None:
    for uri in (
        "s3://bucket/policy/1.1/model.safetensors",
        "file:///nowhere/to/be/seen/policy/1.1/model.safetensors",
    ):
        found = published(tmp_path / uri[:2], 1, uri=uri)
        assert missing_file(next(iter(found.folds["policy"].updates.values()))) is None


def test_an_alias_that_the_gateway_does_not_know_is_refused() -> None:
    check_alias("policy", {"policy": "policy"})
    with pytest.raises(BadTarget, match=r"no alias 'nope'.*aliases are: gpt-4o-mini, policy"):
        check_alias("nope", {"policy": "policy", "gpt-4o-mini": "policy"})
    with pytest.raises(BadTarget, match="no versions"):
        check_alias("big", {"big": None})
