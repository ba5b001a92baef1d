"""The OpenAPI page names every API that is served, and is what it says it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi import FastAPI

from services.common.kafka.settings import KafkaSettings
from services.gateway.app import create_app
from services.gateway.dialects.registry import DIALECTS
from services.gateway.http.openapi_calls import CALLS
from services.gateway.settings import GatewaySettings


@pytest.fixture
def page() -> dict[str, Any]:
    app: FastAPI = create_app(
        GatewaySettings.model_validate({"signing_keys": "k1:0123456789abcdef"}), KafkaSettings()
    )
    return app.openapi()


def test_every_dialect_is_described() -> None:
    assert {call.path for call in CALLS} == {dialect.path for dialect in DIALECTS}


def test_calls_have_bodies_keys_examples_and_errors(page: dict[str, Any]) -> None:
    for call in CALLS:
        operation = page["paths"][call.path]["post"]
        body = operation["requestBody"]["content"]["application/json"]
        assert set(body["schema"]["required"]) <= body["example"].keys()
        assert operation["security"]
        assert {"200", "400", "401", "503"} <= operation["responses"].keys()


def test_every_example_is_a_request_that_its_dialect_takes() -> None:
    dialects = {dialect.path: dialect for dialect in DIALECTS}
    for call in CALLS:
        assert dialects[call.path].parse(json.dumps(call.request).encode()).alias == "policy"


def test_every_reference_is_there(page: dict[str, Any]) -> None:
    for part in json.dumps(page).split('"$ref": "#/components/schemas/')[1:]:
        assert part.split('"')[0] in page["components"]["schemas"]
