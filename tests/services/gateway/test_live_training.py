"""What training may do with a call, from the request to its event."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fulgurite.enums import Mode, TrainingUse
from fulgurite.events import LlmCall
from fulgurite.ids import subject_of
from tests.services.gateway.answering import KEY, OTHER_KEY, REPLY, Gateway, running


async def asked(
    gateway: Gateway,
    text: str = "hello",
    headers: Mapping[str, str] | None = None,
    key: str = KEY,
    **body: Any,
) -> LlmCall:
    body = {"model": "oddv", "temperature": 0.3} | body
    messages = [{"role": "user", "content": text}]
    answer = await gateway.answer(
        "/v1/chat/completions", [REPLY], asked_with=headers, key=key, messages=messages, **body
    )
    return answer.call


async def test_a_live_call_of_an_alias_that_is_opted_in_says_so_and_is_sampled_as_it_was_asked(
    tmp_path: Path,
) -> None:
    changes: dict[str, Any] = {"train_live": "oddv", "train_sampling": {"oddv": {}}}
    async with running(tmp_path, **changes) as gateway:
        call = await asked(gateway)
        other = await asked(gateway, model="odd")
        refused = await asked(gateway, headers={"x-fulgurite-no-train": "true"})
    assert (call.mode, call.training_use) == (Mode.live, TrainingUse.live)
    assert call.sampling.temperature == 0.3
    assert other.training_use is TrainingUse.by_mode
    assert refused.training_use is TrainingUse.excluded


async def test_nothing_is_opted_in_by_default_and_a_refusal_is_recorded_all_the_same(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as gateway:
        assert (await asked(gateway)).training_use is TrainingUse.by_mode
        refused = await asked(gateway, headers={"x-fulgurite-no-train": "1"})
    assert refused.training_use is TrainingUse.excluded


async def test_tenants_and_persons_are_left_out_by_settings(tmp_path: Path) -> None:
    person = subject_of("jane", b"0123456789abcdef0123456789abcdef")
    changes = {"train_live": "oddv", "no_train_keys": OTHER_KEY, "no_train_subjects": person}
    async with running(tmp_path, **changes) as gateway:
        uses = [
            (await asked(gateway, key=OTHER_KEY)).training_use,
            (await asked(gateway, user="jane")).training_use,
            (await asked(gateway, user="john")).training_use,
        ]
    assert uses == [TrainingUse.excluded, TrainingUse.excluded, TrainingUse.live]


async def test_a_flood_of_one_person_is_beyond_the_quota(tmp_path: Path) -> None:
    async with running(tmp_path, train_live="oddv", train_live_quota=1) as gateway:
        uses = [(await asked(gateway, str(number))).training_use for number in range(3)]
        other = await asked(gateway, user="john")
    assert uses.count(TrainingUse.live) >= 1
    assert TrainingUse.quota in uses
    assert other.training_use is TrainingUse.live


@pytest.mark.parametrize("alias", ["odd", "unknown"])
async def test_an_alias_without_a_policy_cannot_be_opted_in(tmp_path: Path, alias: str) -> None:
    with pytest.raises(ValueError, match=f"FULGURITE_TRAIN_LIVE: no policy is behind '{alias}'"):
        async with running(tmp_path, train_live=alias):
            pass
