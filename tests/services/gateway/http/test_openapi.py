"""`/openapi.json` is a valid document that names every API, and its examples are what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from schemathesis import openapi

from services.gateway.dialects.registry import DIALECTS
from services.gateway.http.openapi import MODEL_APIS
from tests.fuzz.gateway import in_process

REST = {
    "/v1/rollouts": {"adminKey"},
    "/v1/rollouts/{rollout}": {"agentKey", "rewardKey", "adminKey"},
    "/v1/rollouts/{rollout}/attempts": {"adminKey"},
    "/v1/rollouts/{rollout}/status": {"agentKey", "adminKey"},
    "/v1/rewards": {"rewardKey", "adminKey"},
    "/v1/policies": {"agentKey", "adminKey"},
}
OPERATIONS = {"/healthz", "/readyz", "/metrics"}


@pytest.fixture
async def document(tmp_path: Path) -> dict[str, Any]:
    async with in_process(tmp_path) as gateway:
        return (await gateway.ask("GET", "/openapi.json", [], b"")).json()


def calls() -> dict[str, Any]:
    """Path → operation of the APIs that agents call."""
    return {path: item["post"] for path, item in MODEL_APIS.items() if "post" in item}


def example(operation: dict[str, Any]) -> dict[str, Any]:
    return operation["requestBody"]["content"]["application/json"]["example"]


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    openapi.from_dict(document).validate()


def test_every_dialect_is_described() -> None:
    assert calls().keys() == {dialect.path for dialect in DIALECTS}


def test_every_route_is_described(document: dict[str, Any]) -> None:
    assert document["paths"].keys() == MODEL_APIS.keys() | REST.keys() | OPERATIONS
    assert document["openapi"] == "3.1.0"


def test_rest_routes_have_their_keys_and_errors(document: dict[str, Any]) -> None:
    for path, keys in REST.items():
        for operation in document["paths"][path].values():
            assert {key for way in operation["security"] for key in way} == keys
            assert {"401", "403"} <= operation["responses"].keys()
            assert "422" not in operation["responses"]
            assert operation["tags"] == ["Rollouts and rewards"]


def test_calls_have_bodies_keys_examples_and_errors(document: dict[str, Any]) -> None:
    for path in calls():
        operation = document["paths"][path]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert set(schema["required"]) <= example(operation).keys()
        assert operation["security"]
        assert {"200", "400", "401", "503"} <= operation["responses"].keys()


def test_every_example_is_a_request_that_its_dialect_takes() -> None:
    dialects = {dialect.path: dialect for dialect in DIALECTS}
    for path, operation in calls().items():
        assert dialects[path].parse(json.dumps(example(operation)).encode()).alias == "policy"


def test_anthropic_errors_differ_from_openais_in_their_shape_alone(
    document: dict[str, Any],
) -> None:
    ours = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        responses = document["paths"][path]["post"]["responses"]
        assert responses.keys() == ours.keys()
        for status in responses.keys() - {"200"}:
            assert responses[status]["description"] == ours[status]["description"]
            assert "AnthropicError" in json.dumps(responses[status])


def test_every_reference_is_there(document: dict[str, Any]) -> None:
    for part in json.dumps(document).split('"$ref": "#/components/schemas/')[1:]:
        assert part.split('"')[0] in document["components"]["schemas"]
    assert json.dumps(document).count('"$ref"') == json.dumps(document).count(
        '"$ref": "#/components/schemas/'
    )
