"""The gateway's address with and without `/v1`."""

from __future__ import annotations

import pytest

from services.common.runtime.gateway_url import root_of
from services.judge.settings import JudgeSettings
from services.runner.settings import RunnerSettings

ROOT = "http://127.0.0.1:8080"


@pytest.mark.parametrize("written", [ROOT, ROOT + "/", ROOT + "/v1", ROOT + "/v1/", f" {ROOT}/v1"])
def test_what_openai_s_clients_want_is_taken_too(
    written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert root_of(written) == ROOT
    monkeypatch.setenv("FULGURITE_GATEWAY_URL", written)
    assert RunnerSettings().gateway_url == ROOT
    assert JudgeSettings().url == ROOT + "/v1"


def test_a_path_of_its_own_stays() -> None:
    assert root_of("https://host/fulgurite/v1") == "https://host/fulgurite"
