"""How fast the gateway is, beside the same thing that records nothing; figures and their reading in
`benchmarks/gateway.md`.

`python -m benchmarks.gateway throughput|latency|memory|idle|vllm|agentlightning`: each a run of its
own against a real broker, ratios within one run. `--prompt-tokens 16000` for long prompts.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import gateway_peer
from benchmarks.gateway_parts import (
    Served,
    bench_folder,
    gateway,
    kafka,
    load,
    measured,
    passthrough,
    stub,
)
from benchmarks.tables import table
from services.local_stack.batch_scheduling import batch_command
from services.local_stack.model import model_folder, tiny_model
from services.local_stack.vllm_local import LocalVllm

Row = dict[str, Any]


def throughput(given: argparse.Namespace) -> None:
    """Requests and chunks a second, of CPU and of the wall; the two sides take turns."""
    kinds: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
        "requests": ((), (), "done"),
        "chunks, stream paced 10 ms": (
            ("--pace-ms", "10"),
            ("--stream", "--connections", "64"),
            "chunks",
        ),
    }
    rows: list[list[Any]] = []
    for kind, (stub_arguments, load_arguments, unit) in kinds.items():
        if given.only and given.only not in kind:
            continue
        sides = _alternate(given, stub_arguments, load_arguments)
        per_cpu = [[told[unit] / told["cpu_s"] for told in runs] for runs in sides.values()]
        per_wall = [[told[unit] / told["seconds"] for told in runs] for runs in sides.values()]
        failed = sum(told["failed"] for runs in sides.values() for told in runs)
        rows.append(
            [
                kind,
                *map(statistics.median, per_cpu),
                *_ratio(*per_cpu),
                *map(statistics.median, per_wall),
                *_ratio(*per_wall),
                failed,
            ]
        )
    columns = [
        "",
        "pass-through / CPU s",
        "gateway / CPU s",
        "ratio",
        "rounds",
        "pass-through / s",
        "gateway / s",
        "ratio",
        "rounds",
        "failed",
    ]
    table(f"Throughput, prompts of {given.prompt_tokens} tokens, answers of 128", columns, rows)


def _alternate(
    given: argparse.Namespace, stub_arguments: tuple[str, ...], load_arguments: tuple[str, ...]
) -> dict[str, list[Row]]:
    prompt = ("--prompt-tokens", str(given.prompt_tokens))
    with (
        bench_folder() as folder,
        kafka(folder) as cluster,
        stub(*prompt, *stub_arguments) as upstream,
        ExitStack() as stack,
    ):
        sides = [
            stack.enter_context(passthrough(upstream)),
            stack.enter_context(gateway(upstream, cluster)),
        ]
        runs: dict[str, list[Row]] = {served.name: [] for served in sides}
        for served in sides:
            load(served, *prompt, *load_arguments, "--seconds", "2")
        for number in range(given.rounds):
            for served in sides if number % 2 else reversed(sides):
                runs[served.name].append(
                    measured(served, *prompt, *load_arguments, "--seconds", str(given.seconds))
                )
    return runs


def _ratio(before: list[float], after: list[float]) -> tuple[float, str]:
    """The median of the rounds' ratios, and the least and the greatest: both sides of a round met
    the machine in the same mood.
    """
    ratios = _ratios(before, after)
    return statistics.median(ratios), f"{min(ratios):.2f} to {max(ratios):.2f}"


def _mean(before: list[float], after: list[float]) -> str:
    """Their mean with its standard error: rounds of an engine on a busy CPU scatter."""
    ratios = _ratios(before, after)
    if len(ratios) < 2:
        return "–"
    return f"{statistics.mean(ratios):.3f} ± {statistics.stdev(ratios) / len(ratios) ** 0.5:.3f}"


def _ratios(before: list[float], after: list[float]) -> list[float]:
    return [ours / theirs for ours, theirs in zip(after, before, strict=True)]


def latency(given: argparse.Namespace) -> None:
    """Latency at a rate: straight to the stub, through the pass-through, through the gateway."""
    prompt = ("--prompt-tokens", str(given.prompt_tokens))
    rows: list[list[Any]] = []
    with (
        bench_folder() as folder,
        kafka(folder) as cluster,
        stub(*prompt) as upstream,
        ExitStack() as stack,
    ):
        sides = [
            stack.enter_context(passthrough(upstream)),
            stack.enter_context(gateway(upstream, cluster)),
        ]
        for served in sides:
            # A broker's JVM compiles its ways meanwhile, and stops for it: the last percent of a
            # new one's first seconds waits for that.
            load(
                served,
                *prompt,
                "--rate",
                str(max(given.rates)),
                "--seconds",
                "15",
                "--connections",
                "64",
            )
        for rate in given.rates:
            arguments = (
                *prompt,
                "--rate",
                str(rate),
                "--seconds",
                str(given.seconds),
                "--connections",
                "64",
            )
            straight = load(upstream, *arguments)
            for served in sides:
                told = measured(served, *arguments)
                added = [told["latency_ms"][p] - straight["latency_ms"][p] for p in ("p50", "p99")]
                reached = told["done"] / told["seconds"]
                rows.append(
                    [
                        served.name,
                        rate,
                        reached,
                        *straight["latency_ms"].values(),
                        *told["latency_ms"].values(),
                        *added,
                        told["failed"],
                    ]
                )
    quantiles = ["p50", "p90", "p99", "p99.9"]
    columns = [
        "",
        "asked / s",
        "answered / s",
        *(f"stub {q}" for q in quantiles),
        *quantiles,
        "added p50",
        "added p99",
        "failed",
    ]
    table(f"Latency in ms, prompts of {given.prompt_tokens} tokens", columns, rows)


def memory(given: argparse.Namespace) -> None:
    """Resident memory over many calls, one in ten of them streamed."""
    rows: list[list[Any]] = []
    share = given.calls // 10
    with (
        bench_folder() as folder,
        kafka(folder) as cluster,
        stub() as upstream,
        gateway(upstream, cluster) as served,
    ):
        done = 0
        while done < given.calls:
            done += load(served, "--requests", str(share * 9 // 10), "--seconds", "600")["done"]
            done += load(served, "--requests", str(share // 10), "--seconds", "600", "--stream")[
                "done"
            ]
            rows.append([f"{done:,}", served.rss_mib()])
    table("Memory of the gateway", ["calls", "resident MiB"], rows)


def idle(given: argparse.Namespace) -> None:
    """Many streams that have begun and say nothing; then whether another call still works."""
    count = min(given.streams, (_soft_limit() - 200) // 2)
    with (
        bench_folder() as folder,
        kafka(folder) as cluster,
        stub("--hold") as upstream,
        stub() as lively,
    ):
        upstreams = f'{{"lively": {{"base_url": "{lively}", "kind": "vllm", "model": "policy"}}}}'
        env = {
            "FULGURITE_UPSTREAMS": upstreams,
            "FULGURITE_HEARTBEAT_S": "3600",
            "FULGURITE_BACKEND_CONCURRENCY": str(2 * count),
        }
        with gateway(upstream, cluster, **env) as served:
            load(served, "--model", "lively", "--seconds", "1")
            before = served.rss_mib()
            streams = _open_streams(served, count)
            begun = sum(_has_begun(stream) for stream in streams)
            held, told = served.rss_mib(), load(served, "--model", "lively", "--seconds", "3")
            time.sleep(5)
            alive = sum(_still_open(stream) for stream in streams)
            for stream in streams:
                stream.close()
    row = [
        len(streams),
        begun,
        alive,
        before,
        held,
        (held - before) * 1024 / len(streams),
        told["done"],
        told["failed"],
    ]
    table(
        "Idle streams",
        [
            "opened",
            "begun",
            "still open",
            "MiB before",
            "MiB",
            "KiB a stream",
            "other calls meanwhile",
            "failed",
        ],
        [row],
    )


def _open_streams(served: Served, count: int) -> list[socket.socket]:
    (host, port), key = served.url.removeprefix("http://").split(":"), served.key.split(",")[0]
    payload = b'{"model":"policy","stream":true,"messages":[{"role":"user","content":"hold on"}]}'
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer "
        f"{key}\r\ncontent-length: {len(payload)}\r\n\r\n"
    )
    streams: list[socket.socket] = []
    for _ in range(count):
        stream = socket.create_connection((host, int(port)), timeout=30)
        stream.sendall(head.encode() + payload)
        streams.append(stream)
    return streams


def _has_begun(stream: socket.socket) -> bool:
    data = b""
    while b"data: " not in data:
        piece = stream.recv(65536)
        if not piece:
            return False
        data += piece
    return data.startswith(b"HTTP/1.1 200")


def _still_open(stream: socket.socket) -> bool:
    stream.setblocking(False)
    try:
        return bool(stream.recv(65536))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _soft_limit() -> int:
    """As many open files as this user may have; the gateway inherits them, and needs two a
    stream.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def vllm(given: argparse.Namespace) -> None:
    """Tokens a second at concurrency 32: vLLM asked for what the log needs, for text alone, then
    through pass-through and gateway.
    """
    model = tiny_model() if given.model == "tiny" else model_folder()
    os.environ["PIN"] = "0"
    with bench_folder() as folder, kafka(folder) as cluster, ExitStack() as stack:
        engine = stack.enter_context(LocalVllm(model, folder / "vllm"))
        relay = stack.enter_context(passthrough(engine.base_url))
        served = stack.enter_context(gateway(engine.base_url, cluster, prefix=batch_command()))
        sides: dict[str, tuple[Served | str, tuple[str, ...]]] = {
            "vLLM, ids and log-probabilities": (engine.base_url, ("--logprobs",)),
            "vLLM, text alone": (engine.base_url, ()),
            "pass-through, ids and log-probabilities": (relay, ("--logprobs",)),
            "gateway, which asks for them": (served, ()),
        }
        arguments = (
            "--prompt-tokens",
            "50",
            "--max-tokens",
            str(given.max_tokens),
            "--stream",
            "--ignore-eos",
        )
        tokens: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(given.rounds + 1):
            for name in sides if number % 2 else reversed(sides):
                target, more = sides[name]
                told = load(target, *arguments, *more, "--seconds", str(given.seconds))
                tokens[name].append(told["done"] * given.max_tokens / told["seconds"])
    measured_rounds = {name: values[1:] for name, values in tokens.items()}
    asked = measured_rounds["vLLM, ids and log-probabilities"]
    rows = [
        [name, statistics.median(values), *_ratio(asked, values), _mean(asked, values)]
        for name, values in measured_rounds.items()
    ]
    columns = ["", "tokens / s", "ratio", "rounds", "mean"]
    table(
        f"Real vLLM, {given.model}, 32 streams, answers of {given.max_tokens} tokens", columns, rows
    )


def agentlightning(given: argparse.Namespace) -> None:
    """The same load on agentlightning's gateway, from an environment of its own."""
    gateway_peer.compare(given, table)


_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "throughput": throughput,
    "latency": latency,
    "memory": memory,
    "idle": idle,
    "vllm": vllm,
    "agentlightning": agentlightning,
}


def main() -> None:
    """One sub-command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=_COMMANDS)
    parser.add_argument("--prompt-tokens", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--rates",
        type=lambda text: [float(rate) for rate in text.split(",")],
        default=[100.0, 250.0, 500.0],
    )
    parser.add_argument("--only", default="", help="throughput: requests, paced")
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--model", choices=("tiny", "smollm2"), default="tiny")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument(
        "--peer",
        type=Path,
        help="agentlightning's environment; made in a temporary folder if not given",
    )
    given = parser.parse_args()
    _COMMANDS[given.command](given)


if __name__ == "__main__":
    main()
