"""Settings that Faust would not start with are refused by name."""

from __future__ import annotations

import pytest
from faust import App
from pydantic import ValidationError

from services.aggregator.settings import AggregatorSettings
from services.common.streaming.worker import StreamSettings
from services.rewarder.settings import RewarderSettings


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (AggregatorSettings, "FULGURITE_AGGREGATOR_SESSION_TIMEOUT_S"),
        (RewarderSettings, "FULGURITE_REWARDER_SESSION_TIMEOUT_S"),
    ],
)
def test_a_session_longer_than_faust_s_requests_is_refused_by_name(
    settings: type[StreamSettings], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "90.5")
    with pytest.raises(ValidationError, match=f"{name} is 90.5 s, and workers take at most 90 s"):
        settings()
    monkeypatch.setenv(name, "90")
    assert settings().session_timeout_s == 90


def test_the_bound_is_faust_s_own() -> None:
    app = App("any")
    assert app.conf.broker_request_timeout == 90  # pyright: ignore[reportUnknownMemberType]
