"""Train from a harness of your own: declare groups, call the model, reward each rollout, until
there is a new version of the policy. It learns to be brief.

`fulgurite up` runs, and its exports are set: eval "$(fulgurite env)". Then: python
examples/own_harness/train.py
"""

from itertools import cycle

from openai import OpenAI

from services.client import Client

QUESTIONS = (
    "What is the capital of France?",
    "What do bees make?",
    "Which season is the coldest?",
    "What falls from clouds?",
)


def run_agent(openai: OpenAI, question: str) -> str:
    reply = openai.chat.completions.create(
        model="policy", messages=[{"role": "user", "content": question}], max_tokens=64
    )
    return reply.choices[0].message.content or ""


client = Client()
before = client.newest_version("policy")
for question in cycle(QUESTIONS):
    for rollout in client.group({"question": question}, size=4):
        with rollout:  # its end is the rollout's: finished, or failed after an exception
            answer = run_agent(OpenAI(**rollout.openai), question)
            rollout.reward(1 / max(1, len(answer.split())))
    print("a group is complete", flush=True)
    if (version := client.newest_version("policy")) != before:
        print("new version:", version)
        break
