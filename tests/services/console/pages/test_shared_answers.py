"""Pages that ask the same share the answer, until the index has grown."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from services.console.pages.address import Address
from services.console.pages.reading import Asked
from services.console.pages.shared_answers import SharedAnswers
from services.console.pages.views import VIEWS
from tests.services.console.recording import NOW, RUN, Recording, published
from tests.synthetic import group_id, rollout_id


class CountingIndex:
    """An index that notes what it was asked, and answers once it may."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.grown = 0
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.answer: list[dict[str, Any]] = [{"n": 1}]

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[dict[str, Any]]:
        """See Index."""
        self.asked.append(f"{sql} {list(parameters)}")
        assert self.may_answer.wait(30)
        if sql == "bad":
            raise ValueError("no such table")
        return self.answer

    def revision(self) -> int:
        """See Index."""
        return self.grown


def test_a_question_is_asked_once_until_the_index_has_grown() -> None:
    index = CountingIndex()
    shared = SharedAnswers(index)
    for _ in range(3):
        shared.revision()
        assert shared.rows("calls", [1]) == [{"n": 1}]
    assert shared.rows("calls", [2]) == [{"n": 1}]
    assert index.asked == ["calls [1]", "calls [2]"]
    index.grown = 1
    assert shared.revision() == 1
    shared.rows("calls", [1])
    assert len(index.asked) == 3


def test_those_that_ask_at_once_get_one_answer() -> None:
    index = CountingIndex()
    shared = SharedAnswers(index)
    index.may_answer.clear()
    with ThreadPoolExecutor(4) as threads:
        found = [threads.submit(shared.rows, "calls") for _ in range(4)]
        index.may_answer.set()
        assert [one.result() for one in found] == [[{"n": 1}]] * 4
    assert len(index.asked) == 1


def test_an_answer_that_began_before_the_index_grew_is_not_kept_for_those_after() -> None:
    index = CountingIndex()
    shared = SharedAnswers(index)
    index.may_answer.clear()
    with ThreadPoolExecutor(2) as threads:
        early = threads.submit(shared.rows, "calls")
        while not index.asked:
            pass
        index.grown = 1
        shared.revision()
        late = threads.submit(shared.rows, "calls")
        index.may_answer.set()
        assert early.result() == late.result()
    assert len(index.asked) == 2


def test_errors_and_large_answers_are_not_kept() -> None:
    index = CountingIndex()
    shared = SharedAnswers(index)
    for _ in range(2):
        with pytest.raises(ValueError, match="no such table"):
            shared.rows("bad")
    for answer in ([{"data": b"record"}], [{"n": 1}] * 3_000):
        index.answer = answer
        before = len(index.asked)
        for _ in range(2):
            assert shared.rows(f"calls {len(answer)}") == answer
        assert len(index.asked) == before + 2
    index.answer = [{"n": 1}]
    for number in range(1_000):
        shared.rows("calls", [number])
    before = len(index.asked)
    shared.rows("calls", [999])
    assert len(index.asked) == before
    shared.rows("calls", [0])
    assert len(index.asked) == before + 1


def test_pages_that_are_open_ask_nothing_while_the_log_stands_still(recording: Recording) -> None:
    counting = Counted(recording)
    shared = SharedAnswers(counting)
    query = {"id": group_id(0), "run": RUN, "rollout": rollout_id(0, 0)}

    def draw(at: int) -> None:
        for view in VIEWS:
            shared.revision()
            view.content(Asked(shared, Address(view.path, query), at))

    draw(NOW)
    first, counting.asked = counting.asked, []
    draw(NOW + 15_000)
    # Records as the log has them are not kept: they are large, and few pages show them.
    assert {sql for sql in counting.asked if "FROM payloads" not in sql} == set()
    assert first
    recording.write([published("policy@1.2", NOW, 0.5)])
    draw(NOW + 16_000)
    assert len(set(counting.asked)) > 30


class Counted:
    """The index of a recording, with what it was asked."""

    def __init__(self, recording: Recording) -> None:
        self._index = recording.index
        self.asked: list[str] = []

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[dict[str, Any]]:
        """See Index."""
        self.asked.append(sql)
        return self._index.rows(sql, parameters)

    def revision(self) -> int:
        """See Index."""
        return self._index.revision()
