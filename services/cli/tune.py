"""Defines the command `fulgurite tune`: makes versions of an alias's prompt, and keeps the best."""

from __future__ import annotations

import getpass
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Annotated

import typer

from fulgurite.cost.prices import Prices
from fulgurite.enums import Mode
from fulgurite.prompts.overlap import OverlapGuard
from fulgurite.prompts.tuning import Budget
from services.cli.cost import read_prices
from services.cli.errors import report_errors
from services.cli.options import read_reward_functions
from services.cli.prompt_files import read_text
from services.cli.tune_report import TuneReport
from services.cli.tuning import (
    LoggedRollouts,
    PromptTopic,
    QueuedRunner,
    read_tuning_tasks,
    require_apart,
    tuning_id,
)
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings
from services.common.processes.errors import ProcessError
from services.common.runtime import logs
from services.common.runtime.extras import how_to_install
from services.common.runtime.process_secrets import hide_from_other_processes
from services.replay.errors import BadArgument
from services.replay.windows import parse_window
from services.runner.command import (
    Concurrency,
    Interrupted,
    PassedVariables,
    Preload,
    new_run_id,
    run_command,
)
from services.runner.errors import RunnerError
from services.runner.jobs import JobQueue
from services.runner.options import RunOptions, read_weights
from services.runner.summary import INTERRUPTED, USELESS
from services.tuner.errors import TunerError
from services.tuner.plan import Method, Plan
from services.tuner.scoring import Scorer
from services.tuner.tuning_log import TuningLog
from services.tuner.verdict import Verdict, decide

_STOPPING_S = 2.0
"""How long the search may take to end once its rollouts have."""


def tune(
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND...",
            help="The agent's command and its arguments, after `--`.",
            show_default=False,
        ),
    ],
    alias: Annotated[
        str, typer.Option(metavar="ALIAS", help="Alias: the model name that agents ask for.")
    ],
    tasks: Annotated[
        Path,
        typer.Option(
            help="File of training tasks, one JSON object per line. Examples and reflection are "
            "from them. The agent never gets the field `reference`."
        ),
    ],
    validation: Annotated[
        Path,
        typer.Option(
            help="File of validation tasks, by which candidates are chosen. No candidate shows "
            "their text."
        ),
    ],
    reward: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]FILE.py:FN|builtin:NAME",
            help="Reward function, as of `fulgurite run`; no judge. Repeatable with names.",
        ),
    ],
    weight: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=NUMBER",
            help="Weight of a named reward in the sum; 1 if not given. Repeatable.",
        ),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            help="File of held-out tasks. They are not run; no candidate may have text of them."
        ),
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(metavar="ROLE", help="Tune the prompt of this agent role alone."),
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="`demonstrations`: show conversations that went well. `gepa`: let a model rewrite "
            "the system prompt."
        ),
    ] = Method.demonstrations,
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="Rollouts per task and version.")] = 1,
    candidates: Annotated[int, typer.Option(min=1, help="Make at most this many candidates.")] = 16,
    max_calls: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Begin no candidate with which this many calls would be exceeded, the comparison "
            "at the end included.",
        ),
    ] = None,
    max_money: Annotated[
        float | None,
        typer.Option(min=0, help="The same for money in the currency of --prices."),
    ] = None,
    prices: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML file of prices (docs/how-to/cost.md)."),
    ] = None,
    slots: Annotated[
        int, typer.Option(min=1, help="`demonstrations`: largest number of examples in a prompt.")
    ] = 4,
    pool: Annotated[
        int, typer.Option(min=1, help="`demonstrations`: how many examples to choose from.")
    ] = 16,
    least_reward: Annotated[
        float, typer.Option(help="`demonstrations`: reward that an example must have earned.")
    ] = 1.0,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="`demonstrations`: take examples from earlier rollouts of the training tasks, "
            "too: an age (24h, 7d), an ISO time in UTC, or `all`.",
        ),
    ] = None,
    reflection_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="`gepa`: the model that writes prompts: an alias of the gateway, or a model of "
            "FULGURITE_TUNER_BASE_URL.",
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="`gepa`: the first system prompt; without it, what the agent gets now.",
        ),
    ] = None,
    minibatch: Annotated[
        int, typer.Option(min=1, help="`gepa`: training tasks in one question for reflection.")
    ] = 3,
    promote: Annotated[
        bool,
        typer.Option(
            "--promote", help="Put the best candidate in force if it is better; else propose it."
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the search; another one begins anew.")
    ] = 0,
    concurrency: Concurrency = 16,
    deadline: Annotated[
        float, typer.Option(min=1, help="Seconds that the rollouts of a task may take.")
    ] = 300.0,
    env: PassedVariables = None,
    preload: Preload = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Tune the prompt of an alias: no weight changes, and no agent.

    Candidates are versions of the prompt that only the tuning's rollouts get. They are scored on
    the validation tasks in mode `val`, which trains nothing. The best one is compared with the
    prompt in force on new rollouts of the same tasks, and proposed if its gain is surely above
    zero: all verdicts on the same tasks together err with 5%. Everything is logged: the same
    command goes on where it was stopped.

    Exits 0 if a candidate is better, 3 if none is, 1 if it cannot continue, 2 if the log cannot be
    read or written, 130 if it was stopped.

    Example: `fulgurite tune --alias policy --tasks train.jsonl --validation validation.jsonl
    --reward rewards.py:score -- python agent.py`
    """
    logs.configure("tuner", "WARNING")
    hide_from_other_processes()
    with report_errors("tune"):
        _check(method, reflection_model, start, since, max_money, prices)
        train, chosen_by = read_tuning_tasks(tasks), read_tuning_tasks(validation)
        hidden = read_tuning_tasks(held_out) if held_out is not None else ()
        require_apart(tasks=train, validation=chosen_by, **{"held-out": hidden})
        rewards, weights = read_reward_functions(reward), read_weights(weight or ())
        text = None if start is None else read_text(start)
        # Examples quote the training tasks that they are of; a text that is written may not.
        unseen = (*chosen_by, *hidden, *(train if method is Method.gepa else ()))
        plan = Plan(
            method=method,
            train=train,
            validation=chosen_by,
            guard=OverlapGuard(one.task for one in unseen),
            n=n,
            candidates=candidates,
            budget=Budget(max_calls, max_money),
            seed=seed,
            slots=slots,
            pool=pool,
            least_reward=least_reward,
            start=text,
            minibatch=minibatch,
            promote=promote,
        )
        options = RunOptions(
            tasks=tasks,
            command=tuple(command),
            run_id=new_run_id(),
            n=n,
            concurrency=concurrency,
            rewards=rewards,
            weights=weights,
            mode=Mode.val,
            model=alias,
            deadline_s=deadline,
            preload=tuple(preload or ()),
            pass_environment=tuple(env or ()),
            cwd=Path.cwd(),
        )
        name = tuning_id(plan, options, role, reflection_model)
        table = read_prices(prices) if prices is not None else None
        _check_price(max_money, table, reflection_model)
        since_ms = None if since is None else parse_window(since)
        kafka = answering(KafkaSettings())
        report = TuneReport(name, as_json=as_json)
        recorded = LoggedRollouts(
            kafka,
            alias,
            role,
            train,
            since_ms,
            wants_examples=since is not None,
        )
        with PromptTopic(kafka) as topic:
            log = TuningLog(alias, role, name, getpass.getuser(), topic.read, topic.publish)
            try:
                search = _search_of(plan, log, recorded, reflection_model, table, report)
            except ModuleNotFoundError as error:
                raise BadArgument(
                    f"the tuner needs {error.name!r}, which is not installed: "
                    + how_to_install("tuner")
                ) from error
            verdict = _run(plan, log, options, kafka, recorded, table, report, search)
        report.finish(verdict, log.state)
    if verdict.decision is None:
        raise typer.Exit(USELESS)


def _check(
    method: Method,
    reflection_model: str | None,
    start: Path | None,
    since: str | None,
    max_money: float | None,
    prices: Path | None,
) -> None:
    """Raise BadArgument for options that do not go together."""
    if method is Method.gepa and reflection_model is None:
        raise BadArgument("--method gepa needs --reflection-model, the model that writes prompts")
    if method is not Method.gepa and (reflection_model is not None or start is not None):
        raise BadArgument(
            "--reflection-model and --start are for --method gepa: add it, or leave them out"
        )
    if method is Method.gepa and since is not None:
        raise BadArgument("--since is for --method demonstrations: leave it out")
    if max_money is not None and prices is None:
        raise BadArgument("--max-money needs --prices FILE (docs/how-to/cost.md)")


def _check_price(
    max_money: float | None, prices: Prices | None, reflection_model: str | None
) -> None:
    """Raise BadArgument for a limit that could not count what the reflection model costs."""
    if max_money is None or prices is None or reflection_model is None:
        return
    if reflection_model not in prices.tokens:
        raise BadArgument(
            f"the price file has no price for the reflection model {reflection_model!r}, so "
            f'--max-money cannot be held: add [tokens."{reflection_model}"] (docs/how-to/cost.md)'
        )


Search = Callable[[Scorer], None]


def _search_of(
    plan: Plan,
    log: TuningLog,
    recorded: LoggedRollouts,
    reflection_model: str | None,
    prices: Prices | None,
    report: TuneReport,
) -> Search:
    """The method's search. Its library is imported only here."""
    if plan.method is Method.demonstrations:
        from services.tuner.demonstrations import search_demonstrations

        return lambda scorer: search_demonstrations(plan, log, scorer, recorded, report.on_warning)
    from services.tuner.gepa_search import search_by_reflection
    from services.tuner.reflection import ReflectionModel
    from services.tuner.settings import TunerSettings

    name = reflection_model or ""
    price = prices.tokens.get(name) if prices is not None else None
    model = ReflectionModel(name, TunerSettings(), price)
    return lambda scorer: search_by_reflection(plan, log, scorer, model)


def _run(
    plan: Plan,
    log: TuningLog,
    options: RunOptions,
    kafka: KafkaSettings,
    recorded: LoggedRollouts,
    prices: Prices | None,
    report: TuneReport,
    search: Search,
) -> Verdict:
    """Tune in a thread, while this one runs the agents that it asks for.

    Raises BadArgument if that fails; exits 130 if it was stopped.
    """
    jobs = JobQueue()
    found: Future[Verdict] = Future()

    def work() -> None:
        try:
            report.begin(
                log.begin(
                    method=str(plan.method),
                    train_tasks=len(plan.train),
                    validation_tasks=len(plan.validation),
                    seed=plan.seed,
                ),
                log.state,
            )
            scorer = Scorer(
                log,
                QueuedRunner(jobs),
                recorded,
                prices,
                report.on_score,
                needs_price=plan.budget.money is not None,
            )
            search(scorer)
            found.set_result(decide(plan, log, scorer))
        except BaseException as error:  # noqa: BLE001 - the edge of the thread: it is raised again
            found.set_exception(error)
        finally:
            jobs.close()

    # A reflection model may take minutes to answer: a tuning that is stopped does not wait for it.
    thread = threading.Thread(target=work, name="tuner", daemon=True)
    thread.start()
    try:
        run_command(options, report, kafka=kafka, jobs=jobs)
    except Interrupted:
        raise typer.Exit(INTERRUPTED) from None
    except (RunnerError, ProcessError) as error:
        raise BadArgument(str(error)) from error
    finally:
        jobs.end("the run has ended")
        thread.join(_STOPPING_S)
    try:
        return found.result()
    except (RunnerError, TunerError) as error:
        raise BadArgument(str(error)) from error
