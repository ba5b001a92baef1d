"""`fulgurite up`: run the local stack for an agent of your own, until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from services.common.kafka.errors import LogUnavailable
from services.common.kafka.topic_admin import TopicLayoutError
from services.common.processes.errors import ProcessError
from services.common.processes.process import describe_exit
from services.common.processes.supervisor import SupervisedProcess
from services.common.runtime import logs
from services.common.runtime.interrupts import interrupts_noted
from services.common.runtime.process_secrets import hide_from_other_processes
from services.local_stack.errors import StackError
from services.local_stack.exports import is_running, read_exports
from services.local_stack.local_stack import LocalStack, StackOptions
from services.local_stack.vllm_settings import VllmSettings

DEFAULT_PORT = 8080
DEFAULT_DATA = Path(".fulgurite/up")

console = Console(stderr=True)


def up(
    data: Annotated[
        Path,
        typer.Option(
            help="Folder for topics, weights, checkpoints and logs. It is kept between starts."
        ),
    ] = DEFAULT_DATA,
    brokers: Annotated[
        int, typer.Option(min=1, max=5, help="Number of Kafka brokers; 3 replicate topics.")
    ] = 1,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the gateway on 127.0.0.1.")
    ] = DEFAULT_PORT,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN.TOML", help="File that describes the training run: a learner per policy."
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER|ID",
            help="Hugging Face folder of the model, or its id on the hub. Without it the run's, or "
            "SmolLM2-135M.",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY",
            help="Name of the policy, and so the model name that agents ask for. Without it the "
            "run's, or `policy`.",
        ),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=POLICY]",
            help="Another model name that agents may ask for. Repeatable.",
        ),
    ] = None,
    context_length: Annotated[
        int | None,
        typer.Option(min=1, help="Longest prompt and answer together, in tokens; 2048 if not set."),
    ] = None,
    kv_cache_gib: Annotated[
        int | None,
        typer.Option(min=1, help="GiB for keys and values on the CPU; 1 if not set."),
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None, typer.Option(help="Share of a GPU's memory that vLLM takes.")
    ] = None,
    tensor_parallel: Annotated[
        int | None, typer.Option(min=1, help="GPUs over which vLLM splits the model.")
    ] = None,
    chat_template: Annotated[
        Path | None, typer.Option(help="Chat template instead of the model's own.")
    ] = None,
    tool_parser: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="vLLM's parser of tool calls; found by the model's chat template if not set.",
        ),
    ] = None,
    reasoning_parser: Annotated[
        str | None, typer.Option(metavar="NAME", help="vLLM's parser of reasoning.")
    ] = None,
    vllm_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ARGUMENT",
            help="A further argument of vLLM, such as --vllm-arg=--max-num-seqs=64. Repeatable.",
        ),
    ] = None,
    show_console: Annotated[
        bool, typer.Option("--console/--no-console", help="Start the console, a page in a browser.")
    ] = True,
) -> None:
    """Start the whole stack on this machine and keep it running until Ctrl-C.

    A file describes what is trained (docs/reference/runs.md): one vLLM serves its policies, and
    each has a learner. Options of vLLM have variables FULGURITE_VLLM_*, too.

    KAFKA_BOOTSTRAP_SERVERS, VLLM_BASE_URL and REDIS_URL replace the local Kafka, vLLM and Valkey
    with servers of your own. FULGURITE_ALIASES adds aliases, as --alias does. In another shell,
    `eval "$(fulgurite env)"` sets the variables that agents and commands need.

    Example: `fulgurite up --run run.toml`
    """
    logs.configure("stack", "WARNING")
    hide_from_other_processes()
    vllm = {
        "context_length": context_length,
        "kv_cache_gib": kv_cache_gib,
        "gpu_memory_utilization": gpu_memory_utilization,
        "tensor_parallel": tensor_parallel,
        "chat_template": chat_template,
        "tool_parser": tool_parser,
        "reasoning_parser": reasoning_parser,
        "args": shlex.join(vllm_arg or ()),
    }
    try:
        options = StackOptions(
            data=data,
            brokers=brokers,
            gateway_port=port,
            run=run,
            model=model,
            policy=policy,
            aliases=tuple(alias or ()),
            vllm=VllmSettings.read(vllm),
            console=show_console,
        )
        with interrupts_noted(), running(options) as stack:
            _print_instructions(stack)
            wait_for_signal()
            console.print("stopping")
        console.print("stopped; no process is left")
    except (StackError, ProcessError, LogUnavailable, TopicLayoutError) as error:
        console.print(f"fulgurite up: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print("stopped; no process is left")
        raise typer.Exit(130) from None


@contextlib.contextmanager
def running(options: StackOptions) -> Generator[LocalStack]:
    """Run a stack, and print a line when a part is ready."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as progress:
        progress.add_task("starting (vLLM takes longest, half a minute to a minute)")

        def on_ready(name: str, seconds: float) -> None:
            progress.console.print(f"  {name} is ready after {seconds:.1f} s")

        stack = LocalStack(options, on_ready, _print_exit, _print_note).start()
    try:
        yield stack
    finally:
        stack.stop()


def wait_for_signal() -> None:
    """Return at SIGINT or SIGTERM."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stopping.set())
    stopping.wait()


def _print_exit(process: SupervisedProcess, code: int) -> None:
    next_step = "it is started again" if process.will_restart() else "it is NOT started again"
    text = (
        f"  {process.name} {describe_exit(code)}: {process.last_error()}. {next_step}; "
        f"its log: {process.spec.log}"
    )
    console.print(
        text, style="yellow" if process.will_restart() else "red", markup=False, soft_wrap=True
    )


def _print_note(text: str) -> None:
    console.print(f"  {text}", style="yellow", markup=False)


def _print_instructions(stack: LocalStack) -> None:
    exports = stack.exports
    agent = "".join(
        f"  export {name}={exports[name]}\n" for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY")
    )
    console.print(
        f"""
Fulgurite is up. {_served(stack)}
Point an agent here:

{agent}
In another shell, for agents, the runner and every other `fulgurite` command:

  eval "$({command()} env{folder_option(stack.data)})"

{_console_line(stack)}
Topics, weights and logs are in {stack.data}. Ctrl-C stops everything.
""",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _console_line(stack: LocalStack) -> str:
    """Where the console is, or how to have one."""
    if stack.console_url is not None:
        return f"What happens is shown at {stack.console_url}"
    return "There is no console: --console starts it, where the extra `console` is installed."


def _served(stack: LocalStack) -> str:
    """What agents may ask for, and what is trained."""
    serving = stack.serving
    trained = f"trained: {', '.join(serving.trained)}" if serving.trained else "nothing is trained"
    frozen = f"; frozen: {', '.join(serving.frozen)}" if serving.frozen else ""
    return f"Its model is {serving.model}; {trained}{frozen}."


def command() -> str:
    """How to call this program from the current folder: often it is not on the PATH."""
    called = Path(sys.argv[0])
    if called.name != "fulgurite" or shutil.which("fulgurite") == str(called.absolute()):
        return "fulgurite"
    return (
        os.path.relpath(called)
        if called.is_relative_to(Path.cwd()) or not called.is_absolute()
        else str(called)
    )


def folder_option(data: Path) -> str:
    """The option --data for `fulgurite env`; empty for its default folder."""
    return "" if data == DEFAULT_DATA.resolve() else f" --data {shlex.quote(str(data))}"


def env(
    data: Annotated[
        Path, typer.Option(help="Data folder of the stack, as given to `fulgurite up`.")
    ] = DEFAULT_DATA,
) -> None:
    """Print the environment variables that agents and commands of the running stack need.

    They include keys. If no stack runs on the data folder, exits 1 and prints nothing on standard
    output.

    Example: `eval "$(fulgurite env)"`
    """
    variables = read_exports(data)
    if not is_running(data) or not variables:
        text = (
            f"fulgurite env: no stack is up on {data.resolve()}. Start one with `fulgurite up`, or "
            "name its folder with --data"
        )
        console.print(text, style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1)
    sys.stdout.writelines(
        f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()
    )
