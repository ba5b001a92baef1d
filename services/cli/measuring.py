"""Runs an agent on held-out tasks with one model after another."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import msgspec

from fulgurite.selection.authors import EVALUATION
from fulgurite.versions import parse_version
from services.cli.gateway_models import GatewaySilent
from services.cli.held_out import Earned, is_version, tasks_of
from services.cli.loading import loaded
from services.common.kafka.settings import KafkaSettings
from services.common.processes.errors import ProcessError
from services.common.runtime import logs
from services.common.runtime.process_secrets import hide_from_other_processes
from services.common.runtime.terminal import make_console
from services.replay.errors import BadArgument
from services.runner.command import new_run_id, run_command
from services.runner.errors import RunnerError
from services.runner.options import RunOptions, task_id
from services.runner.progress import TerminalWatcher
from services.runner.summary import Summary

_LOAD_WAIT_S = 120.0


@contextmanager
def measuring(
    options: RunOptions, kafka: KafkaSettings, *, load: bool, author: str = EVALUATION
) -> Generator[Callable[[str], Earned]]:
    """Yield what runs the agent on all tasks with a model. Leaves the block when it is stopped.

    `author`: of the routes that hold a version at the backends meanwhile.

    Raises BadArgument if a run cannot continue.
    """
    logs.configure("runner", "WARNING")
    hide_from_other_processes()
    tasks = tasks_of(options.tasks)

    def measure(model: str) -> Earned:
        held = (
            loaded(
                kafka, options.model, parse_version(model), _LOAD_WAIT_S, load=load, author=author
            )
            if is_version(model)
            else nullcontext()
        )
        with held:
            return _earned(model, tasks, _run(model, options, kafka))

    try:
        yield measure
    except KeyboardInterrupt:
        return
    except (RunnerError, ProcessError, GatewaySilent) as error:
        raise BadArgument(str(error)) from error


def _run(model: str, options: RunOptions, kafka: KafkaSettings) -> Summary:
    one = msgspec.structs.replace(options, run_id=new_run_id(), served_by=model)
    with TerminalWatcher(make_console(stderr=True, soft_wrap=False), model) as watcher:
        return run_command(one, watcher, kafka=kafka)


def _earned(model: str, tasks: Sequence[dict[str, Any]], summary: Summary) -> Earned:
    """What the rollouts of a run earned. Its groups are in the order of the tasks."""
    earned = Earned(model)
    groups = list(dict.fromkeys(row["group_id"] for row in summary.rollouts))
    ids = dict(zip(groups, map(task_id, tasks), strict=False))
    for row in summary.rollouts:
        versions = [row["version"]] if row["version"] else []
        earned.add(ids[row["group_id"]], row["reward"], versions)
    return earned
