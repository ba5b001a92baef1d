"""Train from a harness of your own: declare a group, call the model, reward each rollout, say that
it is finished.

`fulgurite up` runs, and its exports are set: eval "$(fulgurite env)". Then: python
examples/own_harness/train.py
"""

import json
import os
import urllib.request
from typing import Any

from openai import OpenAI

GATEWAY, ADMIN_KEY = os.environ["FULGURITE_GATEWAY_URL"], os.environ["FULGURITE_ADMIN_KEY"]


def post(path: str, key: str, body: dict[str, Any]) -> Any:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(GATEWAY + path, json.dumps(body).encode(), headers)
    ) as reply:
        return json.loads(reply.read() or b"{}")


for number in range(
    int(os.environ.get("TASKS", "8"))
):  # the learner makes a step of 8 groups (batch.groups)
    task = {
        "question": f"How many is 3 and {number}? Answer with the number only.",
        "answer": str(3 + number),
    }
    group = post(
        "/v1/rollouts",
        ADMIN_KEY,
        {"n": 4, "task": task, "mode": "train", "expected_rewards": ["reward"]},
    )
    for rollout in group["rollouts"]:
        client = OpenAI(base_url=rollout["base_url"], api_key=rollout["api_key"])
        reply = client.chat.completions.create(
            model="policy", messages=[{"role": "user", "content": task["question"]}], max_tokens=16
        )
        value = float((reply.choices[0].message.content or "").strip() == task["answer"])
        reward = {
            "rollout_id": rollout["rollout_id"],
            "name": "reward",
            "value": value,
            "final": True,
        }
        post("/v1/rewards", rollout["reward_key"], reward)
        # Without this the group waits for its deadline (10 minutes), and the rollout counts as
        # timed out.
        post(
            f"/v1/rollouts/{rollout['rollout_id']}/status", rollout["api_key"], {"kind": "finished"}
        )
    print("group", number, "is complete")
