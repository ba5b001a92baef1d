"""Where an agent finds its model server, whatever client it uses."""

from __future__ import annotations

import pytest
from openai import OpenAI

from services.runner.rollout import address_variables


def test_clients_find_the_gateway_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = address_variables("http://gateway:8080/v1", "sk-rollout")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    client = OpenAI()
    assert (str(client.base_url), client.api_key) == ("http://gateway:8080/v1/", "sk-rollout")
    # Anthropic's clients add the version themselves.
    assert variables["ANTHROPIC_BASE_URL"] == "http://gateway:8080"
    keys = {value for name, value in variables.items() if name.endswith("_KEY")}
    urls = {
        value
        for name, value in variables.items()
        if name.endswith(("_BASE", "_URL")) and not name.startswith("ANTHROPIC")
    }
    assert (keys, urls) == ({"sk-rollout"}, {"http://gateway:8080/v1"})
