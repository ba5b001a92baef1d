"""Write and read the variables that a shell needs to use a running stack; `fulgurite env` prints
them.

The file in the data folder holds keys, so only its owner may read it. It stays when the stack
stops: a later start recognises its own variables by it. The lock beside it is held by the running
stack, and is free as soon as that process ends.
"""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from services.local_stack.errors import AlreadyRunning

FILE = "env"
LOCK = "lock"

ADDRESSES = ("KAFKA_BOOTSTRAP_SERVERS", "REDIS_URL", "VLLM_BASE_URL")
"""Each of them, where set, replaces a local service."""


def write_exports(data: Path, variables: Mapping[str, str]) -> None:
    """Write the file in one step, readable by its owner alone."""
    part = data / f".{FILE}"
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.writelines(
            f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()
        )
    part.replace(data / FILE)


def read_exports(data: Path) -> dict[str, str]:
    """The variables that the last start wrote; empty if there was none."""
    try:
        words = [shlex.split(line) for line in (data / FILE).read_text().splitlines()]
    except (OSError, ValueError):
        return {}
    pairs = [line[1].partition("=") for line in words if len(line) == 2 and line[0] == "export"]
    return {name: value for name, equals, value in pairs if equals}


def exporting_stack(environment: Mapping[str, str]) -> Path | None:
    """The data folder of the local stack whose exports this environment holds; None if its Kafka is
    another one.
    """
    folder, servers = (
        environment.get("FULGURITE_DATA_DIR"),
        environment.get("KAFKA_BOOTSTRAP_SERVERS"),
    )
    if (
        not folder
        or not servers
        or read_exports(Path(folder)).get("KAFKA_BOOTSTRAP_SERVERS") != servers
    ):
        return None
    return Path(folder)


class StackLock:
    """A lock that the stack holds on its data folder."""

    def __init__(self, data: Path) -> None:
        self._path = data / LOCK
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock. Raises AlreadyRunning."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 64).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise AlreadyRunning(
                f"a stack (process {holder}) already runs on {self._path.parent}: use it "
                "(`fulgurite env` prints its exports), "
                "stop it, or give this one a folder of its own with --data"
            ) from error
        os.truncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._descriptor = descriptor

    def release(self) -> None:
        """Free the lock. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_running(data: Path) -> bool:
    """Whether a stack uses this data folder now."""
    try:
        descriptor = os.open(data / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
