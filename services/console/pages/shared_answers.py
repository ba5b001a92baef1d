"""Asks the index each question once while it stays as it is, however many pages are open."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from services.console.pages.reading import Index

_MOST = 500
"""Answers that are kept: of some pages with different filters."""
_MOST_ROWS = 2_000
"""Of an answer that is kept."""

Rows = list[dict[str, Any]]


class SharedAnswers:
    """The index, as the pages of a process use it.

    Whoever begins a page calls `revision`: what was answered before the index grew is forgotten
    then. Rows are shared, and must not be changed. Thread-safe.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._seen: int | None = None
        self._answers: OrderedDict[tuple[str, str], _Answer] = OrderedDict()

    def revision(self) -> int:
        """See Index."""
        revision = self._index.revision()
        with self._lock:
            if revision != self._seen:
                self._seen = revision
                self._answers.clear()
        return revision

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> Rows:
        """See Index. Of several that ask the same at once, one asks the index."""
        question = (sql, repr(parameters))
        answer = self._answer(question)
        with answer.lock:
            if answer.rows is None:
                answer.rows = self._index.rows(sql, parameters)
                if not _is_small(answer.rows):
                    self._forget(question, answer)
            return list(answer.rows)

    def _answer(self, question: tuple[str, str]) -> _Answer:
        with self._lock:
            answer = self._answers.setdefault(question, _Answer())
            self._answers.move_to_end(question)
            if len(self._answers) > _MOST:
                self._answers.popitem(last=False)
            return answer

    def _forget(self, question: tuple[str, str], answer: _Answer) -> None:
        with self._lock:
            if self._answers.get(question) is answer:
                del self._answers[question]


class _Answer:
    """An answer, or its place while the index is asked, under the lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.rows: Rows | None = None


def _is_small(rows: Rows) -> bool:
    """Whether an answer is kept: not one of many rows, or of records as they are in the log."""
    has_records = any(isinstance(value, bytes) for row in rows[:1] for value in row.values())
    return len(rows) <= _MOST_ROWS and not has_records
