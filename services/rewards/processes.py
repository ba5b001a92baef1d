"""Starts and ends the processes that a user's function runs in.

They are forks of one process without threads, the fork server of `multiprocessing`: cheap, and
without the broker connections of this process.
"""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from services.common.processes.groups import signal_group
from services.rewards.child import SAFE_PATH, restore_safe_path

_PRELOADED = [
    "services.rewards.fork_server_preload",
    "__main__",
    "pebble",
    "services.rewards.child",
    __name__,
]

_starter = ThreadPoolExecutor(1, "fork-server-starter")
"""Starts the fork server, which ends with the thread that started it: this one lives as long as the
process does.
"""


class GroupLeader(ForkServerProcess):
    """A process that leads a process group, and takes it with it."""

    _group_ended = False

    def is_alive(self) -> bool:
        """Whether it runs. Ends its group if not."""
        alive = super().is_alive()
        if not alive and not self._group_ended:
            self._end_group()
        return alive

    def kill(self) -> None:
        """End it and its group, by SIGKILL."""
        self._end_group()
        super().kill()

    def _end_group(self) -> None:
        self._group_ended = True
        if self.pid is not None:
            signal_group(self.pid, signal.SIGKILL)


class ProcessContext(ForkServerContext):
    """Starts processes, and knows them: a pool ends them one by one, and one that has only begun
    would say that its locks are gone.
    """

    def __init__(self) -> None:
        """Start the fork server, if it does not run."""
        super().__init__()
        self._started: list[GroupLeader] = []
        self.set_forkserver_preload(_PRELOADED)
        before = os.environ.get(SAFE_PATH)
        # It would look for our modules in the working directory first, where a project may have a
        # package of the same name.
        os.environ[SAFE_PATH] = "1"
        try:
            _ensure_fork_server()
        finally:
            restore_safe_path(before)

    def Process(self, *args: Any, **given: Any) -> ForkServerProcess:  # pyright: ignore[reportIncompatibleVariableOverride] - a class there
        """A process that is not started yet."""
        # Starts the fork server again if it has ended, before a thread of the pool would.
        _ensure_fork_server()
        self._started = [process for process in self._started if process.is_alive()]
        self._started.append(GroupLeader(*args, **given))
        return self._started[-1]

    def kill_all(self) -> None:
        """End all processes at once, whatever they do."""
        for process in self._started:
            if process.is_alive():
                process.kill()


def _ensure_fork_server() -> None:
    _starter.submit(forkserver.ensure_running).result()
