"""What the tests say to vLLM, and what they compare it with."""

# transformers is annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportArgumentType=false

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from services.local_stack.ports import LOCALHOST


class Answer(NamedTuple):
    """Status, headers (lower case) and body."""

    status: int
    headers: dict[str, str]
    body: Any


class Sampled(NamedTuple):
    """One generated answer: its tokens, their log-probabilities and the versions of its first and
    last token.
    """

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    first: str
    last: str


class VllmHttp:
    """A client of one vLLM."""

    def __init__(self, port: int) -> None:
        self.port = port

    def open(
        self, method: str, path: str, body: object = None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """For streams; close the connection."""
        connection = http.client.HTTPConnection(LOCALHOST, self.port, timeout=120)
        payload = None if body is None else json.dumps(body)
        connection.request(method, path, payload, {"content-type": "application/json"})
        return connection, connection.getresponse()

    def call(self, method: str, path: str, body: object = None) -> Answer:
        """One request, its whole reply."""
        connection, response = self.open(method, path, body)
        try:
            raw = response.read()
        finally:
            connection.close()
        headers = {name.lower(): value for name, value in response.getheaders()}
        parsed = (
            json.loads(raw)
            if headers.get("content-type", "").startswith("application/json")
            else raw
        )
        return Answer(response.status, headers, parsed)

    def sample(self, text: str, tokens: int = 24, seed: int = 0) -> Sampled:
        """Chat at temperature 1."""
        answer = self.call("POST", "/v1/chat/completions", chat(text, tokens, seed))
        assert answer.status == 200, answer
        choice = answer.body["choices"][0]
        logprobs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
        versions = answer.headers["x-fulgurite-version"], answer.headers["x-fulgurite-version-last"]
        return Sampled(answer.body["prompt_token_ids"], choice["token_ids"], logprobs, *versions)

    def update(self, artifact: Artifact, version: str) -> Answer:
        """The whole sequence in keep mode; stops at the first refusal, always resumes. Returns the
        refusal or the last answer.
        """
        assert self.call("POST", "/pause?mode=keep").status == 200
        try:
            started = self.call("POST", "/start_weight_update")
            if started.status != 200:
                return started
            received = self.call(
                "POST", "/update_weights", {"update_info": artifact.update_info(version)}
            )
            if received.status != 200:
                return received
            finished = self.call("POST", "/finish_weight_update", {"weight_version": version})
            self.call("POST", "/reset_prefix_cache")
            return finished
        finally:
            assert self.call("POST", "/resume").status == 200

    def version(self) -> str:
        """As vLLM reports it."""
        return self.call("GET", "/weight_info").body["weight_version"]


class Artifact(NamedTuple):
    """A weights file and its digest."""

    path: Path
    sha256: str

    def update_info(self, version: str) -> Mapping[str, str]:
        """For `/update_weights`."""
        return {"path": self.path.as_uri(), "sha256": self.sha256, "version": version}


def chat(text: str, tokens: int, seed: int) -> dict[str, Any]:
    """A request for tokens and their log-probabilities."""
    return {
        "model": "policy",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "min_tokens": tokens,
        "temperature": 1.0,
        "seed": seed,
        "logprobs": True,
        "return_token_ids": True,
    }


def perturbed(model: Path, target: Path, seed: int) -> Artifact:
    """The model's weights with as much noise as signal."""
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(model / "model.safetensors")
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std().nan_to_num(
            0.0
        )
        tensors[name] = (tensor.float() + noise).to(tensor.dtype)
    return _saved(tensors, target)


def reshaped(model: Path, target: Path) -> Artifact:
    """The model's weights, but for one row that is missing."""
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()
    return _saved(tensors, target)


def _saved(tensors: dict[str, torch.Tensor], target: Path) -> Artifact:
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target, metadata={"format": "pt"})
    return Artifact(target, hashlib.sha256(target.read_bytes()).hexdigest())


def reference_logprobs(model: Path, weights: Path, sampled: Sampled) -> list[float]:
    """What Hugging Face's implementation says of the same tokens under these weights, in float32."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    network.load_state_dict(
        {name: tensor.float() for name, tensor in load_file(weights).items()}, strict=False
    )
    network.tie_weights()
    with torch.no_grad():
        logits = network(torch.tensor([sampled.prompt + sampled.tokens])).logits[0]
    start = len(sampled.prompt) - 1
    logprobs_TV = torch.log_softmax(logits[start:-1], dim=-1)
    return [float(logprobs_TV[position, token]) for position, token in enumerate(sampled.tokens)]


def mean_difference(one: list[float], other: list[float]) -> float:
    """Mean absolute difference."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)
