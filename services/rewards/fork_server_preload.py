"""Ends the fork server of `multiprocessing` with the process that started it.

`services.rewards.processes` lets the fork server import this module. By itself it would end only
when its last fork does, because its forks hold the pipe that tells it that nobody is left.
"""

from __future__ import annotations

from services.common.processes.parent_death import end_with_parent

end_with_parent()
