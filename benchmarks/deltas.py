"""Bytes of `llm.calls` on the broker's disk for one long conversation, with deltas and without.

`python -m benchmarks.deltas` starts a broker, writes the same calls both ways as a gateway does
(one acknowledged before the next comes, so that zstd has one call at a time to work on) and prints
the table of deltas.md.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.events import LlmCall
from fulgurite.tokens import pack_ids, pack_logprobs, prompt_hash
from fulgurite.topics import LLM_CALLS
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topics
from services.gateway.recording.parents import Parents
from services.local_stack.kafka_local import LocalKafka
from tests.synthetic import make_call

_ANSWER = 128
_CHARS = 4.5
"""Characters of English text per token."""


def conversation(turns: int, new_tokens: int) -> list[LlmCall]:
    """Calls of an agent with five tools; prompts, bodies and answers of natural size, words and
    tokens drawn as Zipf has them.
    """
    chance = random.Random(0)
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(5_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    tools = [
        {
            "type": "function",
            "function": {"name": f"tool_{n}", "description": " ".join(words[n * 60 : n * 60 + 60])},
        }
        for n in range(5)
    ]
    messages: list[dict[str, Any]] = [{"role": "system", "content": " ".join(words[:200])}]
    prompt: list[int] = [chance.randrange(49_152) for _ in range(300)]
    calls: list[LlmCall] = []
    for turn in range(turns):
        text = " ".join(
            chance.choices(words, weights, k=int((new_tokens - _ANSWER) * _CHARS / 6.5))
        )
        messages = [*messages, {"role": "user", "content": text}]
        prompt = prompt + chance.choices(
            range(49_152), [1 / rank for rank in range(1, 49_153)], k=new_tokens - _ANSWER
        )
        answer = [chance.randrange(49_152) for _ in range(_ANSWER)]
        said: dict[str, Any] = {
            "role": "assistant",
            "content": " ".join(chance.choices(words, weights, k=int(_ANSWER * _CHARS / 6.5))),
        }
        call = make_call(
            turn=turn, at=1_000 + turn, prompt=prompt, answers=[answer], replies=[said]
        )
        choice = msgspec.structs.replace(
            call.choices[0], logprobs=pack_logprobs([-chance.expovariate(1) for _ in answer])
        )
        body = json.dumps(
            {"messages": messages, "model": "policy", "tools": tools}, separators=(",", ":")
        )
        calls.append(
            msgspec.structs.replace(
                call, choices=(choice,), request=body, prompt_hash=prompt_hash(pack_ids(prompt))
            )
        )
        messages = [*messages, said]
        prompt = prompt + answer
    return calls


def written(
    calls: Sequence[LlmCall], bootstrap: str, folder: Path, prefix: str, deltas: bool
) -> tuple[int, float]:
    """Bytes in the partitions' files, and microseconds that making a delta took."""
    kafka = KafkaSettings(bootstrap_servers=bootstrap, topic_prefix=prefix)
    create_topics(kafka)
    producer = EventProducer(kafka, Codec(), "benchmark")
    parents, spent = Parents(1 << 30), 0.0
    for call in calls:
        started = time.perf_counter()
        stored, depth = parents.shorten(call) if deltas else (call, 0)
        spent += time.perf_counter() - started
        delivery = producer.publish_sync(LLM_CALLS, call.group_id, stored)
        parents.remember(call, delivery, depth)
    producer.close()
    files = [
        path
        for path in folder.rglob("*.log")
        if path.parent.name.startswith(prefix + LLM_CALLS.name)
    ]
    return sum(path.stat().st_size for path in files), spent / len(calls) * 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, nargs="*", default=[10, 50])
    parser.add_argument("--new-tokens", type=int, default=1_200)
    given = parser.parse_args()
    print(
        "| turns | whole calls, MB | with deltas, MB | ratio | making a delta, µs "
        "|\n|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as name, LocalKafka(Path(name)) as kafka:
        for turns in given.turns:
            calls = conversation(turns, given.new_tokens)
            whole, _ = written(
                calls, kafka.bootstrap_servers, Path(name), f"whole{turns}.", deltas=False
            )
            small, spent = written(
                calls, kafka.bootstrap_servers, Path(name), f"small{turns}.", deltas=True
            )
            print(
                f"| {turns} | {whole / 1e6:.2f} | {small / 1e6:.2f} | {whole / small:.1f} | "
                f"{spent:.0f} |"
            )


if __name__ == "__main__":
    main()
