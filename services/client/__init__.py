"""A small client of the gateway's REST routes, for code that runs its agents itself. It needs the
base package alone.

    from services.client import Client

    with Client().rollout({"question": "How many is 3 and 8?"}) as rollout:
        answer = my_agent(OpenAI(**rollout.openai))
        rollout.reward(float(answer == "11"))
"""

from __future__ import annotations

from services.client.client import Client
from services.client.errors import ClientError, GatewayRefused, GatewayUnreachable, MissingAdminKey
from services.client.rollout import Rollout

__all__ = [
    "Client",
    "ClientError",
    "GatewayRefused",
    "GatewayUnreachable",
    "MissingAdminKey",
    "Rollout",
]
