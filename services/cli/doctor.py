"""Defines the command `fulgurite doctor`: checks whether this machine can run the local stack.

It uses only the standard library and modules that need no more, so that `make doctor`
(`python3 -m services.cli.doctor`) runs before anything is installed.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from services.common.runtime.cpu import CPUINFO, cpu_flags

GIB = 1 << 30
MEMORY_NEEDED_GIB = 8
MEMORY_WANTED_GIB = 12
DISK_NEEDED_GIB = 12
"""8 GiB for torch from PyPI and vLLM with uv's cache on the same file system, 1 GiB for Kafka,
Valkey and the model, the rest for topics and weights.
"""
DISK_AFTER_INSTALL_GIB = 3
GATEWAY_PORT = 8080
_TIMEOUT_S = 5.0


class Check(NamedTuple):
    """The result of one check. `remedy` is empty if nothing is to be done."""

    name: str
    finding: str
    remedy: str = ""
    needed: bool = True
    """Whether the stack cannot run without the remedy."""


def project_folder() -> Path:
    """The root of the checkout; for an installed package, the current folder."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() else Path.cwd()


def check_platform() -> Check:
    """Check for Linux on x86-64, for which vLLM's CPU build exists."""
    found = f"{platform.system()} on {platform.machine()}"
    if (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        return Check("platform", found)
    return Check(
        "platform",
        found,
        "vLLM's CPU build needs Linux on x86-64: use such a machine, or set VLLM_BASE_URL to a "
        "vLLM that runs elsewhere",
    )


def check_cpu(cpuinfo: Path = CPUINFO) -> Check:
    """Check for AVX2, which vLLM needs, and for two cores."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    flags = cpu_flags(cpuinfo)
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    found = f"{cores} cores, {', '.join(known) or 'no AVX2'}"
    if "avx2" not in flags:
        return Check(
            "CPU",
            found,
            "vLLM's CPU build needs AVX2 (Intel since 2013, AMD since 2015): use another machine",
        )
    if cores < 2:
        return Check("CPU", found, "it will be slow: use two cores or more", needed=False)
    return Check("CPU", found)


def check_memory(meminfo: Path = Path("/proc/meminfo")) -> Check:
    """Check how much memory is available without swapping."""
    if not meminfo.is_file():
        return Check(
            "memory",
            "unknown",
            f"make sure that {MEMORY_WANTED_GIB} GiB are free",
            needed=False,
        )
    kib = next(
        int(line.split()[1])
        for line in meminfo.read_text().splitlines()
        if line.startswith("MemAvailable")
    )
    gib = kib * 1024 / GIB
    found = f"{gib:.1f} GiB available"
    if gib < MEMORY_NEEDED_GIB:
        return Check(
            "memory",
            found,
            f"vLLM, learner and Kafka need {MEMORY_NEEDED_GIB} GiB: close other programs or add "
            "memory",
        )
    if gib < MEMORY_WANTED_GIB:
        return Check(
            "memory",
            found,
            f"{MEMORY_WANTED_GIB} GiB are better: close other programs first",
            needed=False,
        )
    return Check("memory", found)


def check_disk(folder: Path | None = None) -> Check:
    """Check the free disk space in the project's folder."""
    folder = folder or project_folder()
    gib = shutil.disk_usage(folder).free / GIB
    installed = (folder / ".venv-serve").is_dir()
    needed = DISK_AFTER_INSTALL_GIB if installed else DISK_NEEDED_GIB
    found = f"{gib:.0f} GiB free in {folder}"
    if gib < needed:
        return Check(
            "disk",
            found,
            f"{needed} GiB are needed: free some, or install with TORCH_BACKEND=cpu, which takes 5 "
            "GiB less",
        )
    return Check("disk", found)


def check_python() -> Check:
    """Check for Python 3.11 or 3.12: all dependencies have wheels for these."""
    names = ("python3.11", "python3.12")
    found = [name for name in names if shutil.which(name)]
    if (3, 11) <= sys.version_info[:2] <= (3, 12) or found:
        listed = ", ".join(found) or platform.python_version()
        return Check("Python", listed)
    return Check(
        "Python",
        f"{platform.python_version()} only",
        "install Python 3.11 or 3.12, for example: apt install python3.11 python3.11-venv",
    )


def check_port(port: int = GATEWAY_PORT) -> Check:
    """Check that the gateway's port is free; the stack picks free ports for all other services."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return Check(
                f"port {port}",
                "in use",
                "`fulgurite up` uses it for the gateway: stop the program that listens there, or "
                "choose another with `fulgurite up --port`",
                needed=False,
            )
    return Check(f"port {port}", "free")


class Address(NamedTuple):
    """A server whose address is in an environment variable."""

    variable: str
    name: str
    port: int
    """The port if the address has none."""
    remedy: str


_INSTEAD = (
    "start that server, or unset {variable} to let the local stack start one (it may be left from "
    "an earlier `fulgurite up`)"
)
ADDRESSES = (
    Address("KAFKA_BOOTSTRAP_SERVERS", "Kafka", 9092, _INSTEAD),
    Address("REDIS_URL", "Redis", 6379, _INSTEAD),
    Address("VLLM_BASE_URL", "vLLM", 80, _INSTEAD),
    Address(
        "FULGURITE_GATEWAY_URL", "gateway", 80, "start it (`fulgurite up`), or unset {variable}"
    ),
)


_LISTS = ("KAFKA_BOOTSTRAP_SERVERS", "VLLM_BASE_URL")


def check_given(address: Address) -> Check:
    """Check that the server at the address in the variable answers: one of several Kafka brokers,
    all of several vLLMs.
    """
    value = os.environ.get(address.variable, "")
    # Only host and port are shown: an address may hold a password.
    several = value.split(",") if address.variable in _LISTS else [value]
    places = [
        _place(part, address.port)
        for part in several
        if part.strip() and not part.strip().startswith("unix:")
    ]
    problems = {
        f"{host}:{port}": problem
        for host, port in places
        if (problem := _dead(host, port)) is not None
    }
    shown = ", ".join(f"{host}:{port}" for host, port in places)
    enough_one = address.variable == "KAFKA_BOOTSTRAP_SERVERS" and len(problems) < len(places)
    if not problems or enough_one:
        return Check(address.name, f"answers at {shown} ({address.variable})")
    why = "; ".join(f"{place}: {problem}" for place, problem in problems.items())
    return Check(
        address.name,
        f"{address.variable} is set, but nothing answers at {why}",
        address.remedy.format(variable=address.variable),
    )


def given_addresses(variables: Iterable[str]) -> list[Check]:
    """Check each of these variables that is set."""
    return [
        check_given(address)
        for address in ADDRESSES
        if address.variable in variables and os.environ.get(address.variable)
    ]


def _place(text: str, port: int) -> tuple[str, int]:
    """Parse `host`, `host:port`, `scheme://user:password@host:port/path` or `name=scheme://...`
    into host and port.
    """
    _, scheme, rest = text.strip().rpartition("://")
    default = 443 if scheme and "https://" in text else port
    try:
        parsed = urllib.parse.urlsplit(f"//{rest}")
        return parsed.hostname or "", parsed.port or default
    except ValueError:
        # Leave out the part that may be a password.
        return rest.rpartition("@")[2], 0


def _dead(host: str, port: int) -> str | None:
    try:
        socket.create_connection((host, port), _TIMEOUT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    return None


def check_environments(folder: Path | None = None) -> Check:
    """Check for the virtual environments that `make install` creates."""
    folder = folder or project_folder()
    missing = [
        name for name in (".venv", ".venv-serve") if not (folder / name / "bin" / "python").exists()
    ]
    if missing:
        return Check(
            "environments",
            f"{' and '.join(missing)} missing",
            "run `make install`",
            needed=False,
        )
    return Check("environments", ".venv and .venv-serve exist")


def check_index(folder: Path | None = None) -> Check:
    """Check that pip, as it is configured, can look up a package."""
    own = (folder or project_folder()) / ".fulgurite" / "uv" / "bin" / "python"
    remedy = (
        "packages cannot be installed: check the network, or name your index in pip's "
        "configuration (PIP_INDEX_URL)"
    )
    for python in (str(own), shutil.which("python3") or sys.executable, sys.executable):
        look_up = [
            python,
            "-m",
            "pip",
            "--retries",
            "0",
            "--timeout",
            str(_TIMEOUT_S),
            "index",
            "versions",
            "uv",
        ]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            asked = subprocess.run(
                look_up, capture_output=True, text=True, check=False, timeout=10 * _TIMEOUT_S
            )
            if "No module named pip" in asked.stderr:
                continue
            if asked.returncode == 0:
                return Check("package index", "answers")
            return Check("package index", "does not answer", remedy, needed=False)
    return Check(
        "package index",
        "unknown: pip is not installed",
        "install it, for example: apt install python3-pip",
        needed=False,
    )


def check_kafka(folder: Path | None = None) -> Check:
    """Check that Kafka's jars are there, or can be downloaded from Maven Central."""
    home = Path(os.environ.get("FULGURITE_HOME") or (folder or project_folder()) / ".fulgurite")
    if os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        return Check("Kafka's jars", "not needed: KAFKA_BOOTSTRAP_SERVERS is set")
    if any(home.glob("engines/kafka-*/*.jar")):
        return Check("Kafka's jars", "downloaded")
    try:
        from jgo.constants import MAVEN_CENTRAL_URL as repository
    except ImportError:
        return Check("Kafka's jars", "will be downloaded from Maven Central at the first start")
    return _reachable(
        "Kafka's jars",
        repository,
        "they cannot be downloaded: check the network, or set KAFKA_BOOTSTRAP_SERVERS to a Kafka "
        "of your own",
    )


def lacking(*, local_vllm: bool) -> list[Check]:
    """Return the failed checks that the local stack cannot run without. Uses no network."""
    local = (check_platform, check_cpu) if local_vllm else ()
    return [
        found
        for found in (check() for check in (*local, check_memory, check_disk))
        if found.remedy and found.needed
    ]


def _reachable(name: str, url: str, remedy: str) -> Check:
    host = urllib.parse.urlparse(url).hostname
    authorities = os.environ.get("SSL_CERT_FILE") or os.environ.get("PIP_CERT")
    context = ssl.create_default_context(cafile=authorities)
    try:
        urllib.request.urlopen(
            urllib.request.Request(url, method="HEAD"), timeout=_TIMEOUT_S, context=context
        ).close()
    except urllib.error.HTTPError:
        pass  # It answered; the status does not matter.
    except (OSError, ValueError) as error:
        return Check(name, f"{host} is not reachable ({error})", remedy, needed=False)
    return Check(name, f"{host} is reachable")


CHECKS: tuple[Callable[[], Check], ...] = (
    check_platform,
    check_cpu,
    check_memory,
    check_disk,
    check_python,
    check_environments,
    check_port,
    check_index,
    check_kafka,
)


def report(checks: Iterable[Check]) -> bool:
    """Print the results; returns whether nothing that is needed is missing."""
    fine = True
    for check in checks:
        mark = "ok  " if not check.remedy else "LACK" if check.needed else "note"
        print(f"{mark}  {check.name:<18} {check.finding}")
        if check.remedy:
            print(f"      {'':<18} -> {check.remedy}")
        fine = fine and not (check.remedy and check.needed)
    print(
        "This machine can run the local stack."
        if fine
        else "This machine cannot run the local stack as it is."
    )
    return fine


def doctor() -> None:
    """Check what this machine lacks for the local stack, and print what to do.

    Checks platform, CPU, memory, disk, Python, ports and package registries, and connects to the
    Kafka, Redis, vLLM and gateway that the environment names. Changes nothing. Exits 1 if something
    needed is missing, or one of those does not answer.

    Example: `fulgurite doctor`
    """
    checks = [
        *(check() for check in CHECKS),
        *given_addresses(address.variable for address in ADDRESSES),
    ]
    if not report(checks):
        raise SystemExit(1)


if __name__ == "__main__":
    doctor()
