"""What `fulgurite policy` says of versions, what it copies, and where a rollback goes."""

# peft and transformers are annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fulgurite.enums import ArtifactFormat, UpdateKind
from fulgurite.events import Artifact, PolicyRoute, PolicyUpdate, RouteTarget
from fulgurite.versions import parse_version
from services.cli.pull import Damaged, pull
from services.cli.versions import listed, named_version, shares
from services.common.policies.route_log import former_targets
from services.common.policies.route_targets import BadTarget, Published
from services.common.runtime.weights_index import Shard, write_index
from services.learner.artifacts import ArtifactStore
from services.local_stack.model import tiny_model
from tests.integration.lora_adapter import Adapter


def update(step: int, artifact: Artifact | None = None) -> PolicyUpdate:
    return PolicyUpdate(
        event_id=f"u{step}", event_time=step, policy="policy",
        kind=UpdateKind.update if step else UpdateKind.claim, epoch=1, step=step,
        version=f"policy@1.{step}" if step else None,
        parent_version=(f"policy@1.{step - 1}" if step > 1 else "policy@0.0") if step else None,
        learner_id="l", artifact=artifact, trained_actions=step, metrics={"reward_mean": step / 10},
        config='{"batch": {"groups": 8}}' if not step else None,
    )  # fmt: skip


def published(*updates: PolicyUpdate) -> Published:
    found = Published()
    for event in (update(0), *updates):
        found.apply(event)
    return found


def route(*versions: tuple[str | None, float], previous: tuple[str, ...] = ()) -> PolicyRoute:
    return PolicyRoute(
        event_id="r", event_time=1, alias="policy", reason="", author="",
        targets=tuple(RouteTarget(policy="policy", version=v, weight=w) for v, w in versions),
        previous=tuple(RouteTarget(policy="policy", version=v, weight=1) for v in previous),
    )  # fmt: skip


def artifact(file: Path) -> Artifact:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    size = file.stat().st_size
    return Artifact(uri=file.as_uri(), sha256=digest, size=size, format=ArtifactFormat.full)


@pytest.fixture
def version(tmp_path: Path) -> PolicyUpdate:
    """A version of the tiny model, as the learner stores it."""
    store = ArtifactStore(tmp_path / "data", "policy", tiny_model(), durable=False)

    def export(path: Path) -> None:
        shutil.copyfile(tiny_model() / "model.safetensors", path)

    return update(1, store.write(parse_version("policy@1.1"), export))


def test_a_pulled_folder_is_the_model(version: PolicyUpdate, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    files = pull(version, folder)
    assert {path.name for path in files} >= {"model.safetensors", "config.json", "manifest.json"}
    tokens = torch.tensor([[5, 17, 99, 3]])
    with torch.no_grad():
        mine, base = (
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(tokens).logits
            for path in (folder, tiny_model())
        )
    assert torch.equal(mine, base)
    template = AutoTokenizer.from_pretrained(tiny_model()).chat_template
    assert AutoTokenizer.from_pretrained(folder).chat_template == template


def test_a_pulled_adapter_is_the_adapter(tmp_path: Path) -> None:
    adapter = Adapter(tmp_path / "artifacts" / "policy" / "1.1", seed=1)
    pull(update(1, adapter.artifact()), tmp_path / "mine")
    base = AutoModelForCausalLM.from_pretrained(tiny_model(), dtype=torch.float32)
    tokens = torch.tensor([[5, 17, 99, 3]])
    with torch.no_grad():
        mine = PeftModel.from_pretrained(base, tmp_path / "mine")(tokens).logits
        merged = adapter.model(tokens).logits
    torch.testing.assert_close(mine, merged, atol=1e-4, rtol=0)


def test_a_damaged_version_is_not_pulled(version: PolicyUpdate, tmp_path: Path) -> None:
    weights = tmp_path / "data" / "artifacts" / "policy" / "1.1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(Damaged, match="damaged or replaced"):
        pull(version, tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_a_version_in_shards_is_pulled_whole_or_not_at_all(tmp_path: Path) -> None:
    def export(path: Path) -> None:
        tensors = load_file(tiny_model() / "model.safetensors")
        names, shards = sorted(tensors), list[Shard]()
        for number, some in enumerate((names[:4], names[4:]), 1):
            file = path.with_name(f"model-0000{number}-of-00002.safetensors")
            save_file({name: tensors[name] for name in some}, file, metadata={"format": "pt"})
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            shards.append(Shard(file.name, digest, tuple(some), 0))
        write_index(path.parent, shards)

    store = ArtifactStore(tmp_path / "data", "policy", tiny_model(), durable=False)
    version = update(1, store.write(parse_version("policy@1.1"), export))
    pull(version, tmp_path / "mine")
    mine, base = (
        AutoModelForCausalLM.from_pretrained(path).state_dict()
        for path in (tmp_path / "mine", tiny_model())
    )
    assert all(torch.equal(mine[name], base[name]) for name in base)
    shard = store.folder / "1.1" / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(Damaged, match=r"00002-of-00002.*damaged or replaced"):
        pull(version, tmp_path / "again")


def test_what_cannot_be_pulled_says_why(version: PolicyUpdate, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes").touch()
    with pytest.raises(BadTarget, match="is not an empty folder"):
        pull(version, taken)
    assert version.artifact is not None
    for uri, why in (
        ("s3://bucket/model.safetensors", "the tools of that store"),
        ("file:///nowhere/policy/1.1/model.safetensors", "cannot be seen here"),
        ((tmp_path / "data/artifacts/policy/1.0/m").as_uri(), "are gone"),
    ):
        moved = msgspec.structs.replace(version.artifact, uri=uri)
        with pytest.raises(BadTarget, match=why):
            pull(msgspec.structs.replace(version, artifact=moved), tmp_path / "mine")
    with pytest.raises(BadTarget, match="names no weights"):
        pull(update(1), tmp_path / "mine")


def test_a_listed_version_says_who_keeps_it_and_whether_it_is_there(tmp_path: Path) -> None:
    files = [tmp_path / f"1.{step}" / "model.safetensors" for step in (1, 2, 3)]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(b"weights")
    known = published(*(update(step, artifact(file)) for step, file in enumerate(files, 1)))
    files[1].unlink()
    routes = [route(("policy@1.3", 3.0), (None, 1.0), previous=("policy@1.1",))]
    first, second, third = listed(known, routes, "policy")
    assert (first.weights, second.weights, third.weights) == ("here", "removed", "here")
    assert (first.rollback_target, third.rollback_target) == (True, False)
    assert (dict(first.routed), dict(third.routed)) == ({}, {"policy": 0.75})
    assert (third.parent, third.trained_actions, third.size) == ("policy@1.2", 3, 7)
    with pytest.raises(BadTarget, match="it has policy"):
        listed(known, routes, "polisy")


def test_a_share_of_nothing_is_none() -> None:
    assert shares([route(("policy@1.1", 0.0))], parse_version("policy@1.1")) == {"policy": 0.0}


def test_a_policy_stands_for_its_newest_version() -> None:
    known = published(update(1), update(2))
    assert str(named_version(known, "policy")) == "policy@1.2"
    assert str(named_version(known, "policy@1.1")) == "policy@1.1"
    with pytest.raises(BadTarget, match="nor a policy"):
        named_version(known, "1.2")
    with pytest.raises(BadTarget, match=r"never published; the newest is policy@1\.2"):
        known.update(parse_version("policy@1.9"))
    with pytest.raises(BadTarget, match="is the base model"):
        known.update(parse_version("policy@0.0"))


def test_a_rollback_returns_to_what_the_route_replaced() -> None:
    known = published(update(1), update(2))
    (before,) = former_targets(known, route(("policy@1.2", 1), previous=("policy@1.1",)), "policy")
    assert before.version == "policy@1.1"
    assert former_targets(known, route(("policy@1.2", 1)), "policy") == ()


def test_without_a_route_a_rollback_returns_to_the_version_before_the_newest() -> None:
    for none in (None, route()):
        (before,) = former_targets(published(update(1), update(2)), none, "policy")
        assert before.version == "policy@1.1"
    (before,) = former_targets(published(update(1)), route(previous=("policy@1.1",)), "policy")
    assert before.version == "policy@1.1"
    (before,) = former_targets(published(update(1)), None, "policy")
    assert before.version == "policy@0.0"
    with pytest.raises(BadTarget, match="nothing to roll back"):
        former_targets(published(), None, "policy")
