"""Check a deployment before any of its containers starts: `python -m
services.local_stack.preflight`. See docker-compose.yml.

Checks the settings of every service, the machine and the volumes, and makes missing secrets. Ends
with 78 (EX_CONFIG) and one line for each problem, which names the setting and the remedy. Then
Docker starts nothing.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from services.aggregator.settings import AggregatorSettings
from services.applier.settings import ApplierSettings
from services.cli.doctor import check_cpu
from services.common.kafka.settings import KafkaSettings
from services.gateway.identity.keys import KeyRing
from services.gateway.settings import GatewaySettings
from services.judge.settings import JudgeSettings
from services.learner.config_file import load_all
from services.learner.errors import ConfigInvalid
from services.learner.settings import LearnerSettings
from services.local_stack.errors import StackError
from services.local_stack.serving import plan_serving
from services.local_stack.vllm_settings import VllmSettings
from services.rewarder.settings import RewarderSettings
from services.rewards.settings import RewardWorkerSettings

GIB = 1 << 30
PROFILES = {"cpu", "gpu"}
SERVICES: tuple[type[BaseSettings], ...] = (
    KafkaSettings,
    GatewaySettings,
    ApplierSettings,
    AggregatorSettings,
    RewarderSettings,
    RewardWorkerSettings,
    JudgeSettings,
    LearnerSettings,
)
VLLM_BASE_GIB = 2.5
"""What vLLM's CPU build takes beside its cache of keys and values; see docs/how-to/deploy.md."""

_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": GIB}
_RESERVE_GIB = 0.5
"""A machine sold with 8 GiB shows a little less."""

Environment = Mapping[str, str]


def check_settings(environment: Environment) -> Iterator[str]:
    """Report every value that a service would refuse, by its variable, without secret values."""
    problems: set[str] = set()
    for settings in SERVICES:
        try:
            made = settings()
        except ValidationError as error:
            for finding in error.errors():
                name = _variable(settings, finding["loc"])
                value = environment.get(name, "")
                shown = "" if any(word in name for word in ("KEY", "PASSWORD")) else f"={value}"
                problems.add(
                    f"{name}{shown}: {finding['msg']}. Correct it in .env "
                    "(docs/reference/settings.md says what it takes)."
                )
            continue
        if isinstance(made, GatewaySettings):
            problems.update(_gateway_problems(made))
    problems.update(_run_problems(environment))
    yield from sorted(problems)


def _run_problems(environment: Environment) -> Iterator[str]:
    """Report what is wrong with the training run, and what other services are not told of it."""
    try:
        VllmSettings.read()
        serving = plan_serving(load_all(LearnerSettings().run))
    except (ConfigInvalid, StackError) as error:
        yield (
            f"{error}. Correct it in .env or in RUN_FILE (docs/reference/runs.md says what it "
            "takes)."
        )
        return
    model = environment.get("FULGURITE_MODEL")
    if model and Path(model) != serving.model:
        yield (
            f"RUN_FILE: policy.model = {serving.model}, but vLLM starts with FULGURITE_MODEL="
            f"{model}. Set it to {serving.model} in .env."
        )
    policy = environment.get("FULGURITE_POLICY", "policy")
    if policy not in serving.policies:
        yield (
            f"FULGURITE_POLICY={policy}: RUN_FILE has no such policy. Set it to "
            f"{serving.policy} in .env."
        )
    for name, needed in (
        ("FULGURITE_LORA_POLICIES", serving.adapters),
        ("FULGURITE_REWARDER_FROZEN_POLICIES", serving.frozen),
    ):
        given = environment.get(name, "")
        if not set(needed) <= set(_listed(given)):
            yield f"{name}={given}: RUN_FILE needs {name}={','.join(needed)}. Set it in .env."
    frozen = set(_listed(environment.get("FULGURITE_REWARDER_FROZEN_POLICIES", "")))
    for trained in sorted(frozen & set(serving.trained)):
        yield (
            f"FULGURITE_REWARDER_FROZEN_POLICIES names {trained}, which RUN_FILE trains: none of "
            "its actions would be trained. Take it out in .env, or set frozen = true in RUN_FILE."
        )
    aliases = _listed(environment.get("FULGURITE_ALIASES", "policy=policy"))
    targets = {pair.partition("=")[2] for pair in aliases}
    missing = [name for name in serving.policies if name not in targets]
    if missing and len(serving.policies) > 1:
        added = ",".join(f"{name}={name}" for name in missing)
        yield (
            f"FULGURITE_ALIASES={','.join(aliases)} names no alias for {', '.join(missing)}, so no "
            f"agent could ask for it: add {added} in .env."
        )


def _listed(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _variable(settings: type[BaseSettings], where: tuple[int | str, ...]) -> str:
    field = str(where[0]) if where else ""
    prefix = str(settings.model_config.get("env_prefix", ""))
    return field if field.isupper() else f"{prefix}{field}".upper()


def _gateway_problems(settings: GatewaySettings) -> Iterator[str]:
    try:
        settings.routes()
        settings.outage_modes()
        if settings.signing_keys.get_secret_value():
            KeyRing.parse(settings.signing_keys.get_secret_value())
    except ValueError as error:
        yield f"{error}. Correct it in .env."
        return
    policies = {route.policy for route in settings.routes().values()}
    if settings.policy not in policies:
        yield (
            f"FULGURITE_ALIASES={settings.aliases} names no alias for "
            f"FULGURITE_POLICY={settings.policy}, so no agent could ask for it: "
            f"add {settings.policy}={settings.policy}."
        )


def check_numbers(environment: Environment) -> Iterator[str]:
    """Check the numbers that only the compose file uses."""
    for name in ("VLLM_CPU_KVCACHE_SPACE", "VLLM_MAX_MODEL_LEN"):
        value = environment.get(name, "1")
        if not value.isdigit() or int(value) < 1:
            yield f"{name}={value}: expected a whole number, at least 1. Correct it in .env."


def check_profile(
    environment: Environment, driver: Path = Path("/proc/driver/nvidia/gpus")
) -> Iterator[str]:
    """Check that one engine and one learner are chosen, and that their hardware is there."""
    named = {name.strip() for name in environment.get("COMPOSE_PROFILES", "").split(",")}
    chosen = named & PROFILES
    if len(chosen) != 1:
        given = environment.get("COMPOSE_PROFILES", "")
        yield (
            f"COMPOSE_PROFILES={given}: name either cpu or gpu, for example "
            "COMPOSE_PROFILES=cpu,rewards in .env."
        )
    elif chosen == {"cpu"}:
        cpu = check_cpu()
        if cpu.remedy and cpu.needed:
            yield f"COMPOSE_PROFILES=cpu: {cpu.finding}. {cpu.remedy}; or COMPOSE_PROFILES=gpu."
    else:
        gpus = len(list(driver.iterdir())) if driver.is_dir() else 0
        if gpus < 2 and environment.get("VLLM_GPU", "0") != environment.get("LEARNER_GPU", "1"):
            yield (
                f"COMPOSE_PROFILES=gpu: this machine shows {gpus} NVIDIA GPU(s), and vLLM and "
                "the learner take one each. Install the "
                "driver and the NVIDIA Container Toolkit, or set COMPOSE_PROFILES=cpu; on one "
                "large GPU both may run: VLLM_GPU=0 and "
                "LEARNER_GPU=0."
            )


def check_memory(environment: Environment, meminfo: Path = Path("/proc/meminfo")) -> Iterator[str]:
    """Check the machine's whole memory, because the deployment may be running already; and vLLM's
    limit against its cache.
    """
    total = (
        next(
            int(line.split()[1])
            for line in meminfo.read_text().splitlines()
            if line.startswith("MemTotal")
        )
        * 1024
        / GIB
    )
    try:
        needed = float(environment.get("MEMORY_NEEDED_GIB", "8"))
        limit = as_bytes(environment.get("VLLM_MEMORY", "5g")) / GIB
        cache = float(environment.get("VLLM_CPU_KVCACHE_SPACE", "1"))
    except ValueError as error:
        yield (
            f"MEMORY_NEEDED_GIB, VLLM_MEMORY or VLLM_CPU_KVCACHE_SPACE: {error}. Correct it in "
            ".env, for example VLLM_MEMORY=5g."
        )
        return
    if total + _RESERVE_GIB < needed:
        yield (
            f"MEMORY_NEEDED_GIB={needed:g}: containers have {total:.1f} GiB here. Give Docker "
            "more (Docker Desktop: Settings, "
            "Resources), take a larger machine, or lower MEMORY_NEEDED_GIB in .env to try all "
            "the same."
        )
    if limit < cache + VLLM_BASE_GIB:
        yield (
            f"VLLM_MEMORY={environment.get('VLLM_MEMORY', '5g')} is too little for "
            f"VLLM_CPU_KVCACHE_SPACE={cache:g} GiB: "
            f"set at least {cache + VLLM_BASE_GIB:g}g, or lower the cache."
        )


def as_bytes(size: str) -> float:
    """Parse a size as Docker writes it: `512m`, `5g`. Raises ValueError."""
    text = size.strip().lower().removesuffix("b")
    unit = _UNITS.get(text[-1:], 1)
    return float(text.rstrip("kmg")) * unit


def check_port(environment: Environment) -> Iterator[str]:
    """Check that the port is free, or held by this gateway, which a second `up` finds running."""
    host, port = (
        environment.get("GATEWAY_BIND", "127.0.0.1"),
        environment.get("GATEWAY_PORT", "8080"),
    )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except (OSError, OverflowError, ValueError) as error:
            if not _is_a_gateway(host, port):
                yield (
                    f"GATEWAY_PORT={port}: {error} (GATEWAY_BIND={host}). Stop what listens "
                    "there, or set another GATEWAY_PORT in .env."
                )


def _is_a_gateway(host: str, port: str) -> bool:
    with (
        suppress(OSError, ValueError, HTTPException),
        urllib.request.urlopen(f"http://{host}:{port}/healthz", timeout=3) as answer,
    ):
        return bool(answer.read(64).replace(b" ", b"") == b'{"status":"ok"}')
    return False


def check_volumes(environment: Environment, root: Path = Path("/")) -> Iterator[str]:
    """Check that what the volumes hold can be used."""
    project = environment.get("CHECK_PROJECT", "fulgurite")
    for folder in (
        "models",
        "secrets",
        "judge-secrets",
        "data/checkpoints",
        "data/artifacts",
        "data/claims",
        "data/spool",
    ):
        path = root / folder
        if path.is_dir() and not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            volume = f"{project}_{path.name}"
            yield (
                f"the volume {volume} belongs to user {path.stat().st_uid} and cannot be "
                "written. Give it back to the services: "
                f"docker run --rm --user 0 --volume {volume}:/v --entrypoint chown "
                "fulgurite-cli:0.1.0 -R 10001 /v"
            )
    yield from _kafka_problems(
        root / "kafka", environment.get("KAFKA_CLUSTER_ID", ""), f"{project}_kafka"
    )


def _kafka_problems(folder: Path, cluster: str, volume: str) -> Iterator[str]:
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        return
    properties = folder / "meta.properties"
    anew = f"or begin with empty topics: docker compose down && docker volume rm {volume}"
    if not properties.is_file():
        if any(
            path.name not in ("lost+found", "bootstrap.checkpoint") for path in folder.iterdir()
        ):
            yield (
                f"the volume {volume} is half-written: it has no meta.properties. Restore it "
                f"from its backup, {anew}"
            )
        return
    found = dict(
        line.split("=", 1) for line in properties.read_text().splitlines() if "=" in line
    ).get("cluster.id")
    if found != cluster:
        yield (
            f"KAFKA_CLUSTER_ID={cluster}, but the volume {volume} is of cluster {found}: "
            f"set KAFKA_CLUSTER_ID={found} in .env, {anew}"
        )


def make_secrets(folder: Path, environment: Environment) -> list[str]:
    """Write each secret that is not on the disk yet, from the environment or a new one; the names
    of those written.
    """
    wanted = {
        "signing_keys": lambda: f"k1:{secrets.token_urlsafe(32)}",
        "admin_key": lambda: f"sk-admin-{secrets.token_urlsafe(24)}",
        "api_keys": lambda: f"sk-{secrets.token_urlsafe(24)}",
    }
    missing = {
        name: make
        for name, make in wanted.items()
        if not (folder / name).is_file() or not (folder / name).read_text().strip()
    }
    for name, make in missing.items():
        # Also written where the environment gives it. An entry point reads the file only where the
        # environment has no value.
        _write_secret(folder / name, environment.get(f"FULGURITE_{name.upper()}") or make())
    return sorted(missing)


def share_secret(secret: Path, folder: Path) -> None:
    """Copy a secret into the volume of a service that needs this one and must not see the
    others.
    """
    _write_secret(folder / secret.name, secret.read_text())


def _write_secret(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    part.replace(path)


CHECKS: tuple[Callable[[Environment], Iterator[str]], ...] = (
    check_profile,
    check_settings,
    check_numbers,
    check_memory,
    check_port,
    check_volumes,
)


def main() -> int:
    """Run the checks; the exit status."""
    problems = [problem for check in CHECKS for problem in check(os.environ)]
    if not problems:
        made = make_secrets(Path("/secrets"), os.environ)
        share_secret(Path("/secrets/api_keys"), Path("/judge-secrets"))
        sys.stderr.write(
            "settings, machine and volumes are in "
            f"order{'; made ' + ', '.join(made) if made else ''}\n"
        )
        return 0
    for problem in problems:
        sys.stderr.write(f"PROBLEM {problem}\n")
    sys.stderr.write(
        "Nothing was started. When that is changed: docker compose up --detach --wait\n"
    )
    return os.EX_CONFIG


if __name__ == "__main__":
    sys.exit(main())
