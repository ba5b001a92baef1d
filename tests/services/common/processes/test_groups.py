"""Groups and sessions of real processes: who belongs to them, and how they are ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Protocol

import pytest

from services.common.processes.groups import end_sessions, session_members, signal_group
from tests.services.common.processes.programs import IGNORES_SIGTERM, PARENT, SLEEP, eventually


class Start(Protocol):
    def __call__(self, code: str) -> subprocess.Popen[bytes]: ...


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts leaders of sessions, and returns when they have said that they are up."""
    with ExitStack() as stack:

        def start(code: str) -> subprocess.Popen[bytes]:
            leader = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
                )
            )
            stack.callback(end_sessions, [leader.pid], 0)
            assert leader.stdout is not None
            leader.stdout.readline()
            return leader

        yield start


def test_a_session_has_its_leader_and_its_children_of_other_groups(start: Start) -> None:
    leader = start(PARENT)
    members = session_members(leader.pid)
    assert (leader.pid in members, len(members)) == (True, 2)


def test_only_the_group_is_signalled(start: Start) -> None:
    leader = start(PARENT)
    assert signal_group(leader.pid, signal.SIGTERM)
    assert leader.wait(30) == -signal.SIGTERM
    assert len(session_members(leader.pid)) == 1


def test_a_group_that_is_gone_is_reported(start: Start) -> None:
    leader = start(SLEEP)
    leader.kill()
    leader.wait()
    assert not signal_group(leader.pid, signal.SIGTERM)
    assert session_members(leader.pid) == []


def test_sessions_get_sigterm_first_also_stopped_ones(start: Start) -> None:
    leaders = [start(PARENT), start(SLEEP)]
    leaders[1].send_signal(signal.SIGSTOP)
    end_sessions([leader.pid for leader in leaders], 30)
    assert [leader.wait(30) for leader in leaders] == [-signal.SIGTERM] * 2
    assert session_members(leaders[0].pid) == []


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(start: Start) -> None:
    leader = start(IGNORES_SIGTERM)
    end_sessions([leader.pid], 0.1)
    assert leader.wait(30) == -signal.SIGKILL
    assert eventually(lambda: session_members(leader.pid) == [])
