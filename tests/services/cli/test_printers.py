"""No printer of a command lets a text through that a terminal would obey, or fails on one: texts of
agents, models, tasks and errors.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fulgurite.cost.prices import Money
from fulgurite.cost.table import By, CostRow, CostTable
from fulgurite.diagnosis.facts import BrokenPrefix, Facts
from fulgurite.diagnosis.findings import find
from fulgurite.enums import PrefixBreak, StatusKind
from fulgurite.failures import FailureKind
from fulgurite.ledger.model import Account, Balance, Discrepancy
from services.cli import cost, diagnose, dlq, errors, ledger, lineage, replay, rollouts, try_reward
from services.cli.output import print_json
from services.common.runtime import terminal
from services.common.runtime.terminal import EscapingConsole
from services.replay.lineage import Behind, CallOutcome
from services.replay.replay import Report
from services.replay.scoring import Comparison
from services.runner.exit_classes import ExitClass
from services.runner.gateway_client import Grant
from services.runner.progress import TerminalWatcher
from services.runner.rollout import Attempt
from services.runner.summary import Summary

EVIL = (
    "\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\u202e", "\u2066", "\ud83c", "\u2028", "\r",
    "[/bold]", "[red]", "[link=http://evil]x[/link]", "\\[",
)  # fmt: skip
texts = st.lists(st.one_of(st.text(max_size=6), st.sampled_from(EVIL)), max_size=6).map("".join)

Print = Callable[[EscapingConsole, str], None]


def obeyed(text: str) -> list[str]:
    controls = [
        c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t"
    ]
    return controls + re.findall("[\u202a-\u202e\u2066-\u2069]", text)


def show_rollout(console: EscapingConsole, text: str) -> None:
    message = {"role": text, "content": text, "tool_calls": [{"name": text, "arguments": text}]}
    choice = {
        "choice": 0, "message": message, "finish_reason": text, "tokens": 1, "reward": 1.0, "credit": 0.5, "mask": text,
        "token_ids": [1], "logprobs": [-0.5],
    }  # fmt: skip
    call = {
        "at": 2, "what": "call", "call_id": text, "agent": text, "outcome": text, "milliseconds": 1, "prompt_tokens": 1, "version": text,
        "prompt_version": text, "error": text, "messages": [message], "choices": [choice],
    }  # fmt: skip
    status = {
        "at": 1,
        "what": "status",
        "kind": text,
        "source": text,
        "attempt": 0,
        "failure": text,
        "message": text,
    }
    reward = {
        "at": 3,
        "what": "reward",
        "name": text,
        "value": None,
        "source": text,
        "call_id": text,
        "error": text,
    }
    rollouts.show(
        {"rollout_id": text, "task": text, "began_at": 0, "events": [status, call, reward]},
        console,
        160,
    )


def show_books(console: EscapingConsole, text: str) -> None:
    account = Account(
        policy=text,
        partition=0,
        until=1,
        actions=1,
        terms={text: 1, "filtered(no_signal)": 1},
        remainder=1,
    )
    problem = Discrepancy(action=text, policy=text, partition=0, terms=(text,), has_call=False)
    ledger.show(
        Balance(
            accounts=(account,),
            discrepancies=(problem,),
            overdue=(text,),
            expired=1,
            live_rollouts=2,
            untrained={"live": 3},
            without_learner=(text,),
        ),
        console,
        partitions=True,
    )


def show_lineage(console: EscapingConsole, text: str) -> None:
    behind = Behind(
        version=text,
        parent=text,
        time=0,
        topic=text,
        artifact=text,
        groups={text: (text,)},
        ancestors=(text,),
    )
    lineage._show_version(  # pyright: ignore[reportPrivateUsage]
        behind, console, calls=True
    )
    lineage._show_call(  # pyright: ignore[reportPrivateUsage]
        CallOutcome(
            call_id=text, trained={text: (text,)}, other={text: (text,)}, inherited=(text,)
        ),
        console,
    )  # pyright: ignore[reportPrivateUsage]


def show_costs(console: EscapingConsole, text: str) -> None:
    row = CostRow(key=text, calls=1, discarded={text: 1}, money=Money())
    table = CostTable(by=By.alias, currency=text, rows=(row, row), total=row, unpriced=(text,))
    cost.show(table, console, 1)


def show_diagnosis(console: EscapingConsole, text: str) -> None:
    broken = BrokenPrefix(
        kind=PrefixBreak.rewritten, rows=1, rollout_id=text, call_id=text, shared_tokens=1
    )
    facts = Facts(
        rollouts=1, unscored=1, failures={text: 1}, reward_errors={text: 1}, actions={text: 1}, one_valued={text: 1.0},
        broken_prefixes=(broken,),
    )  # fmt: skip
    diagnose.show(facts, find(facts), console)


def show_run(console: EscapingConsole, text: str) -> None:
    watcher = TerminalWatcher(console, text)
    grant = Grant(text, 0, 0, "", "", "")
    exit_class = ExitClass(StatusKind.failed, FailureKind.agent_exception, text)
    watcher.on_attempt(Attempt(grant, exit_class, False, 1, 1.0, text))
    watcher.on_warning(text)
    watcher.finish(
        Summary(
            run_id=text, mode=text, groups=1, counts={text: 1}, actions={text: 1}, problem=text, interrupted=True, warnings=[text],
            reward=None, components={text: 1.0}, curve=[],
            updates=0, version=text, seconds=1.0, first_rollout_to_last_update_s=None, updated_at_s=[],
            rollouts=[],
        )
    )  # fmt: skip


def show_try(console: EscapingConsole, text: str) -> None:
    found = Comparison(
        groups=1,
        episodes=1,
        before=None,
        after=None,
        signal_before=0,
        signal_after=0,
        flips=((text, 0.0, 1.0),),
        unscored=0,
    )
    judge: Any = SimpleNamespace(failed=1, why=Counter({text: 1}))
    try_reward._show(found, judge, 10)  # pyright: ignore[reportPrivateUsage]


def show_replay(_console: EscapingConsole, text: str) -> None:
    replay._show(  # pyright: ignore[reportPrivateUsage]
        Report(judged=1, failed=1, why={text: 1}, left_out=[text] * 9, unmet=[text]),
        text,
        as_json=False,
    )


def show_failing(console: EscapingConsole, text: str) -> None:
    errors.show_failures(console, {text: 1})
    errors.show_left_out([text] * 9)
    errors._print_error("try", ValueError(text))  # pyright: ignore[reportPrivateUsage]


def show_json(_console: EscapingConsole, text: str) -> None:
    print_json({"text": text, text: [text]})


PRINTERS = [
    show_rollout,
    show_books,
    show_lineage,
    show_costs,
    show_diagnosis,
    show_run,
    show_try,
    show_replay,
    show_failing,
    show_json,
]


@pytest.mark.parametrize("printer", PRINTERS, ids=lambda printer: printer.__name__)
@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(text=texts)
def test_nothing_that_a_terminal_obeys_is_printed(printer: Print, text: str) -> None:
    written = io.StringIO()

    def console(**_: object) -> EscapingConsole:
        return EscapingConsole(
            file=written, force_terminal=False, width=200, highlight=False, emoji=False
        )

    with pytest.MonkeyPatch.context() as patch:
        for module in (try_reward, replay, errors, dlq, terminal):
            patch.setattr(module, "make_console", console)
        patch.setattr("sys.stdout", written)
        printer(console(), text)
    assert written.getvalue()
    assert obeyed(written.getvalue()) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OverflowError("too large"), 1),
        (RecursionError("deep"), 1),
        (ValueError("fsum"), 1),
        (OSError("gone"), 2),
    ],
)
def test_what_is_in_the_log_ends_a_command_with_a_line_and_no_traceback(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, errors.report_errors("try"):
        raise error
    assert ended.value.exit_code == code
    assert capsys.readouterr().err == f"try: {error}\n"
