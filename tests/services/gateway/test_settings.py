"""Routes and keys, as the environment says them."""

from __future__ import annotations

import pytest

from fulgurite.enums import Mode
from services.gateway.http.health_routes import promise
from services.gateway.settings import GatewaySettings


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("VLLM_BASE_URL", "http://engine:8000/v1/")
    return monkeypatch


def settings() -> GatewaySettings:
    return GatewaySettings()  # pyright: ignore[reportCallIssue]


def test_one_policy_by_default(env: pytest.MonkeyPatch) -> None:
    [route] = settings().routes().values()
    assert (route.alias, route.policy, route.model, route.kind, route.base_url) == (
        "policy",
        "policy",
        "policy",
        "vllm",
        "http://engine:8000",
    )
    assert settings().plain_keys() == ()


def test_aliases_and_upstreams(env: pytest.MonkeyPatch) -> None:
    env.setenv("FULGURITE_ALIASES", "a=p, b=p")
    env.setenv(
        "FULGURITE_UPSTREAMS", '{"gpt": {"base_url": "https://api.example/v1", "api_key": "sk-x"}}'
    )
    env.setenv("FULGURITE_API_KEYS", "one, two")
    routes = settings().routes()
    assert set(routes) == {"a", "b", "gpt"}
    assert (
        routes["gpt"].kind,
        routes["gpt"].model,
        routes["gpt"].policy,
        routes["gpt"].api_key,
    ) == ("openai", "gpt", None, "sk-x")
    assert routes["gpt"].base_url == "https://api.example"
    assert settings().plain_keys() == ("one", "two")
    assert "sk-x" not in repr(settings())


def test_an_alias_without_a_policy(env: pytest.MonkeyPatch) -> None:
    env.setenv("FULGURITE_ALIASES", "a")
    with pytest.raises(ValueError, match="alias=policy"):
        settings().routes()


@pytest.mark.parametrize(("replication", "full"), [(1, False), (2, False), (3, True)])
def test_the_promise_needs_three_replicas(replication: int, full: bool) -> None:
    assert promise(replication)["full"] is full


def test_live_traffic_is_spooled_where_there_is_a_folder_for_it(env: pytest.MonkeyPatch) -> None:
    env.setenv("FULGURITE_SPOOL_DIR", "")
    env.setenv("FULGURITE_LOG_UNAVAILABLE_LIVE", "")
    assert set(settings().outage_modes().values()) == {"refuse"}
    env.setenv("FULGURITE_SPOOL_DIR", "/var/spool/fulgurite")
    assert settings().outage_modes() == {
        Mode.train: "refuse",
        Mode.val: "refuse",
        Mode.live: "spool",
    }
    env.setenv("FULGURITE_LOG_UNAVAILABLE_VAL", "serve")
    env.setenv("FULGURITE_LOG_UNAVAILABLE_LIVE", "refuse")
    assert settings().outage_modes() == {
        Mode.train: "refuse",
        Mode.val: "serve",
        Mode.live: "refuse",
    }


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ('{"policy": {"checker": {"pattern": "("}}}', "not a regular expression"),
        ('{"policy": {"checker": {"alias": "nowhere"}}}', "nowhere"),
        ('{"nowhere": {"checker": {"pattern": "a"}}}', "nowhere"),
    ],
)
def test_roles_that_cannot_be_are_refused(env: pytest.MonkeyPatch, roles: str, said: str) -> None:
    env.setenv("FULGURITE_ROLES", roles)
    with pytest.raises(ValueError, match=said):
        settings().routes()
