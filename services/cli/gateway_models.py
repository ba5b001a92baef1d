"""Asks the gateway for its aliases, with a key from the environment."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from urllib.parse import quote

import msgspec

from services.common.runtime.gateway_url import root_of
from services.runner.settings import RunnerSettings

_TIMEOUT_S = 5.0
_NOT_FOUND = 404


class GatewaySilent(Exception):
    """The gateway cannot be asked; the text says why and which variable to check."""


class Model(msgspec.Struct):
    """An alias, as the gateway lists it."""

    id: str
    policy: str | None = None
    upstream: bool = False
    """Whether it is an alias of FULGURITE_UPSTREAMS."""


class _Models(msgspec.Struct):
    data: list[Model]


def is_served(name: str) -> bool:
    """Whether the gateway knows an alias, or a version that a backend serves. Raises
    GatewaySilent.
    """
    url = f"{root_of(RunnerSettings().gateway_url)}/v1/models/{quote(name)}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {_key()}"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
            return True
    except urllib.error.HTTPError as error:
        with error:
            if error.code == _NOT_FOUND:
                return False
            raise GatewaySilent(
                f"{url} answers with status {error.code}: check FULGURITE_ADMIN_KEY or "
                "FULGURITE_API_KEYS"
            ) from error
    except OSError as error:
        raise GatewaySilent(
            f"{url} does not answer ({getattr(error, 'reason', error)}): check "
            "FULGURITE_GATEWAY_URL"
        ) from error


def aliases_of_gateway() -> dict[str, str | None]:
    """Map aliases to their policies, None for models of other upstreams. Raises GatewaySilent."""
    return {model.id: model.policy for model in models_of_gateway()}


def models_of_gateway() -> list[Model]:
    """The gateway's aliases. Raises GatewaySilent."""
    url = f"{root_of(RunnerSettings().gateway_url)}/v1/models"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {_key()}"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:
            models = msgspec.json.decode(reply.read(), type=_Models)
    except urllib.error.HTTPError as error:
        with error:
            raise GatewaySilent(
                f"{url} answers with status {error.code}: check FULGURITE_ADMIN_KEY or "
                "FULGURITE_API_KEYS"
            ) from error
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise GatewaySilent(
            f"{url} does not answer ({getattr(error, 'reason', error)}): check "
            "FULGURITE_GATEWAY_URL"
        ) from error
    return models.data


def policy_of(alias: str) -> str:
    """The policy that serves an alias without a route; of the same name if the gateway cannot be
    asked.
    """
    try:
        return aliases_of_gateway().get(alias) or alias
    except GatewaySilent:
        return alias


def _key() -> str:
    settings = RunnerSettings()
    plain_keys = os.environ.get("FULGURITE_API_KEYS", "").split(",")
    return (
        settings.admin_key.get_secret_value()
        or plain_keys[0].strip()
        or os.environ.get("OPENAI_API_KEY", "")
    )
