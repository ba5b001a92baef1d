"""`fulgurite up`: the local stack for one's own agent, until Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from services import logs
from services.kafka import LogUnavailable
from services.process_secrets import hide_from_other_processes
from services.stack.errors import StackError
from services.stack.local_stack import LocalStack, StackOptions
from services.stack.supervise import Process
from services.topic_admin import TopicLayoutError

DEFAULT_PORT = 8080

console = Console(stderr=True)


def up(
    data: Annotated[Path, typer.Option(help="Topics, weights, checkpoints, logs; kept from one start to the next.")] = Path(
        ".fulgurite/up"
    ),
    brokers: Annotated[int, typer.Option(min=1, max=5, help="Kafka brokers; 3 give replication.")] = 1,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The gateway's port on 127.0.0.1.")] = DEFAULT_PORT,
    model: Annotated[Path | None, typer.Option(help="Hugging Face folder of the model; without it SmolLM2-135M.")] = None,
    policy: Annotated[str, typer.Option(help="Name of the policy, which agents ask for as their model.")] = "policy",
) -> None:
    """Start the whole stack on this machine and keep it running until Ctrl-C.

    KAFKA_BOOTSTRAP_SERVERS, VLLM_BASE_URL and REDIS_URL, where set, replace the local engine.
    """
    logs.configure("stack", "WARNING")
    hide_from_other_processes()
    options = StackOptions(data=data, brokers=brokers, gateway_port=port, model=model, policy=policy)
    try:
        with running(options) as stack:
            _tell(stack)
            wait_for_signal()
            console.print("stopping")
    except (StackError, LogUnavailable, TopicLayoutError) as error:
        console.print(f"fulgurite up: {error}", style="red", markup=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@contextlib.contextmanager
def running(options: StackOptions) -> Generator[LocalStack]:
    """A running stack, its start shown with a line per part."""
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True) as progress:
        progress.add_task("starting (vLLM takes longest, half a minute to a minute)")

        def on_ready(name: str, seconds: float) -> None:
            progress.console.print(f"  {name} is ready after {seconds:.1f} s")

        stack = LocalStack(options, on_ready, _tell_exit).start()
    try:
        yield stack
    finally:
        stack.stop()


def wait_for_signal() -> None:
    """Return at SIGINT or SIGTERM."""
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: told.set())
    told.wait()


def _tell_exit(process: Process, code: int) -> None:
    console.print(f"  {process.name} ended with {code}; its log: {process.spec.log}", style="yellow", markup=False)


def _tell(stack: LocalStack) -> None:
    console.print(
        f"""
Fulgurite is up. Point an agent here:

  export OPENAI_BASE_URL={stack.gateway_url}/v1
  export OPENAI_API_KEY={stack.secrets.api_key}

For operators, the runner and every other `fulgurite` command:

  export FULGURITE_GATEWAY_URL={stack.gateway_url}
  export FULGURITE_ADMIN_KEY={stack.secrets.admin_key}
  export FULGURITE_API_KEYS={stack.secrets.api_key}
  export KAFKA_BOOTSTRAP_SERVERS={stack.environment["KAFKA_BOOTSTRAP_SERVERS"]}
  export FULGURITE_DATA_DIR={stack.environment["FULGURITE_DATA_DIR"]}

Topics, weights and logs are in {stack.data}. Ctrl-C stops everything.
""",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
