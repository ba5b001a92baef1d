"""`fulgurite doctor`: what this machine lacks for the local stack, and what to do about it.

Needs nothing but the standard library, so that `make doctor` runs before anything is installed
(`python3 services/cli/doctor.py`).
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

GIB = 1 << 30
MEMORY_NEEDED_GIB = 8
MEMORY_WANTED_GIB = 12
DISK_NEEDED_GIB = 12
"""torch from PyPI and vLLM: 8 GiB with uv's cache on the same file system, engines and the model 1
GiB, room for topics and weights.
"""
DISK_AFTER_INSTALL_GIB = 3
GATEWAY_PORT = 8080
_TIMEOUT_S = 5.0


class Check(NamedTuple):
    """One finding. `remedy` is empty where nothing is to be done."""

    name: str
    finding: str
    remedy: str = ""
    needed: bool = True
    """Whether the stack cannot run without the remedy."""


def project_folder() -> Path:
    """The checkout; for an installed package, the current folder."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() else Path.cwd()


def check_platform() -> Check:
    """vLLM's CPU build exists for Linux on x86-64."""
    found = f"{platform.system()} on {platform.machine()}"
    if (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        return Check("platform", found)
    return Check(
        "platform", found, "use Linux on x86-64, or set VLLM_BASE_URL to a vLLM that runs elsewhere"
    )


def check_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Check:
    """AVX2 at least; AVX-512 and AMX are faster."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    flags = next(
        (set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")),
        set[str](),
    )
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    found = f"{cores} cores, {', '.join(known) or 'no AVX2'}"
    if "avx2" not in flags:
        return Check(
            "CPU",
            found,
            "vLLM's CPU build needs AVX2 (Intel since 2013, AMD since 2015): use another machine",
        )
    if cores < 2:
        return Check("CPU", found, "it will run, slowly: two cores were measured", needed=False)
    return Check("CPU", found)


def check_memory(meminfo: Path = Path("/proc/meminfo")) -> Check:
    """What can be used without swapping."""
    if not meminfo.is_file():
        return Check("memory", "unknown", "see yourself that 12 GiB are free", needed=False)
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
            f"vLLM, learner and Kafka need {MEMORY_NEEDED_GIB} GiB: close other programs or "
            "add memory",
        )
    if gib < MEMORY_WANTED_GIB:
        return Check(
            "memory",
            found,
            f"{MEMORY_WANTED_GIB} GiB are comfortable; with less, close other programs first",
            needed=False,
        )
    return Check("memory", found)


def check_disk(folder: Path | None = None) -> Check:
    """Free space where the project lies."""
    folder = folder or project_folder()
    gib = shutil.disk_usage(folder).free / GIB
    installed = (folder / ".venv-serve").is_dir()
    needed = DISK_AFTER_INSTALL_GIB if installed else DISK_NEEDED_GIB
    found = f"{gib:.0f} GiB free in {folder}"
    if gib < needed:
        return Check(
            "disk",
            found,
            f"{needed} GiB are needed: free some, or install with TORCH_BACKEND=cpu, which "
            "takes 5 GiB less",
        )
    return Check("disk", found)


def check_python() -> Check:
    """An interpreter that every part has wheels for."""
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
    """The one fixed port; all others are free ones."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return Check(
                f"port {port}",
                "in use",
                "`fulgurite up` wants it for the gateway: stop what listens there, or use --port",
                needed=False,
            )
    return Check(f"port {port}", "free")


class Address(NamedTuple):
    """A server that a variable of the environment names."""

    variable: str
    name: str
    port: int
    """Where an address has none."""
    remedy: str


_INSTEAD = (
    "unset {variable} (it may be left from an earlier `fulgurite up`) and a local one is started, "
    "or start that one"
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
    """Whether somebody answers where the environment says that a server is; of several brokers one
    is enough, of several vLLMs all.
    """
    value = os.environ.get(address.variable, "")
    # Without what an address may hold besides: a password, and the name of a backend.
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
        f"{address.variable} is set, and nobody answers at {why}",
        address.remedy.format(variable=address.variable),
    )


def given_addresses(variables: Iterable[str]) -> list[Check]:
    """A finding for each of these variables that is set."""
    return [
        check_given(address)
        for address in ADDRESSES
        if address.variable in variables and os.environ.get(address.variable)
    ]


def _place(text: str, port: int) -> tuple[str, int]:
    """Host and port of `host`, `host:port`, `scheme://user:password@host:port/path` or
    `name=scheme://...`.
    """
    _, scheme, rest = text.strip().rpartition("://")
    default = 443 if scheme and "https://" in text else port
    try:
        parsed = urllib.parse.urlsplit(f"//{rest}")
        return parsed.hostname or "", parsed.port or default
    except ValueError:
        # Named without what may be a password.
        return rest.rpartition("@")[2], 0


def _dead(host: str, port: int) -> str | None:
    try:
        socket.create_connection((host, port), _TIMEOUT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    return None


def check_environments(folder: Path | None = None) -> Check:
    """What `make install` makes."""
    folder = folder or project_folder()
    missing = [
        name for name in (".venv", ".venv-serve") if not (folder / name / "bin" / "python").exists()
    ]
    if missing:
        return Check(
            "environments",
            f"{' and '.join(missing)} not there yet",
            "run `make install`",
            needed=False,
        )
    return Check("environments", ".venv and .venv-serve are there")


def check_index(folder: Path | None = None) -> Check:
    """Where Python packages come from, as pip is configured: pip itself is asked to look one up."""
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
        "package index", "unknown: no pip to ask with", "apt install python3-pip", needed=False
    )


def check_kafka(folder: Path | None = None) -> Check:
    """Where a local Kafka comes from."""
    home = Path(os.environ.get("FULGURITE_HOME") or (folder or project_folder()) / ".fulgurite")
    if os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        return Check("Kafka's jars", "not needed: KAFKA_BOOTSTRAP_SERVERS is set")
    if any(home.glob("engines/kafka-*/*.jar")):
        return Check("Kafka's jars", "are there")
    try:
        from jgo.constants import MAVEN_CENTRAL_URL as repository
    except ImportError:
        return Check("Kafka's jars", "will be fetched from Maven Central at the first start")
    return _reachable(
        "Kafka's jars",
        repository,
        "they cannot be fetched: set KAFKA_BOOTSTRAP_SERVERS to a Kafka of your own",
    )


def lacking(*, local_vllm: bool) -> list[Check]:
    """What the local stack cannot run without and this machine has not; quick, asks nobody
    outside.
    """
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
        pass  # It answered: what it thinks of a HEAD request is no matter.
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
    """Print the findings; whether nothing needed is missing."""
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
