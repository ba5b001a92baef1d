"""Defines the command `fulgurite pin`: makes a recorded rollout a held-out task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from fulgurite.calls.transcript import messages_of
from fulgurite.enums import Mode
from fulgurite.events import LlmCall
from services.cli.errors import report_errors
from services.cli.held_out import tasks_of
from services.common.blobs.blob_store import readable
from services.common.kafka.codec import make_codec
from services.common.kafka.settings import KafkaSettings
from services.common.runtime.terminal import make_console, plain
from services.replay.errors import BadArgument, NotFound
from services.replay.groups import Group
from services.replay.log_source import LogSource
from services.replay.lookup import find_group, group_of
from services.runner.options import HIDDEN_FIELD, Task, task_id


def pin(
    name: Annotated[
        str, typer.Argument(metavar="ROLLOUT", help="Id of a rollout, a call or a group.")
    ],
    tasks: Annotated[
        Path, typer.Option(help="File of held-out tasks to append to, one JSON object per line.")
    ] = Path("held-out.jsonl"),
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Right answer, which the reward function sees as `reference`; replaces the task's "
            "own.",
        ),
    ] = None,
) -> None:
    """Make a recorded rollout a held-out task, for `fulgurite eval` and `fulgurite run --mode val`.

    Appends the task that was declared for the rollout to a file, unless it is there already. For
    live traffic, which declares none, the task is {"messages": [...]}: those of its first call.
    `fulgurite run --held-out FILE` leaves held-out tasks out of training. Exits 1 if the log has no
    such rollout or the file is no file of tasks, 2 if the log or the file cannot be used.

    Example: `fulgurite pin ROLLOUT --tasks held-out.jsonl --reference 42`
    """
    with report_errors("pin"):
        group_id, rollout_id = group_of(name)
        codec = make_codec()
        group = find_group(LogSource(KafkaSettings(), codec), codec, group_id)
        task = _task(group, rollout_id)
        if reference is not None:
            task[HIDDEN_FIELD] = reference
        added = append(tasks, task)
        trained = any(status.mode is Mode.train for status in group.statuses)
    console = make_console()
    console.print(plain(f"{'added to' if added else 'already in'} {tasks}: {task_id(task)}"))
    if trained:
        console.print(
            "[yellow]its rollouts were for training:[/yellow] from now on leave it out, with "
            f"`fulgurite run --held-out {plain(tasks)}`, or it measures what was learned by heart"
        )


def append(path: Path, task: Task) -> bool:
    """Append a task to a file; False if it is there. Raises BadArgument, OSError."""
    known = tasks_of(path) if path.exists() and path.stat().st_size else []
    if task_id(task) in map(task_id, known):
        return False
    text = path.read_text(encoding="utf-8") if known else ""
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" if text and not text.endswith("\n") else "")
        file.write(msgspec.json.encode(task).decode() + "\n")
    return True


def _task(group: Group, rollout_id: str | None) -> Task:
    """The task of a rollout. Raises NotFound, BadArgument."""
    if group.declaration is not None:
        try:
            return msgspec.json.decode(group.declaration.task, type=dict[str, Any])
        except msgspec.ValidationError as error:
            raise BadArgument(
                f"the task of {group.group_id} is {group.declaration.task[:40]}, which is not a "
                "JSON object as files of tasks have: add it to the file by hand"
            ) from error
    calls = [
        event
        for (rollout, _), events in group.inputs.items()
        for event in events.values()
        if isinstance(event, LlmCall) and rollout_id in (None, rollout)
    ]
    if not calls:
        raise NotFound(
            f"the log has no call of {rollout_id or group.group_id}: `fulgurite rollouts list` "
            "lists what it has"
        )
    first = min(calls, key=lambda call: (call.started_at, call.call_id))
    return {"messages": messages_of(readable(first))}
