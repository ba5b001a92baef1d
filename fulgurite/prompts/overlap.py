"""Finds text of tasks in a prompt: a prompt that quotes its tasks is not better, it has seen them.

Texts are compared as words and signs, whatever their case. A run of words counts if it stands in
few of the tasks: what many share is their form, not their content.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import msgspec

RUN = 8
"""Words in a row that are taken for copied; shorter texts count as a whole."""
SHORTEST = 4
"""Texts of fewer words, such as an answer of one number, say too little."""
_SHARED = 10
"""A run that stands in more than one of so many tasks is their form."""
_WORD = re.compile(r"\w+|[^\w\s]")

Words = tuple[str, ...]


class Overlap(msgspec.Struct, frozen=True):
    """What a prompt has from a task."""

    field: str
    """Field of the task that the text is from."""
    text: str
    """The words that both have, in a row."""

    def __str__(self) -> str:
        return f"{self.text!r} stands in the field {self.field!r} of a task"


class OverlapGuard:
    """Knows the texts of tasks that no prompt may have."""

    def __init__(self, tasks: Iterable[Mapping[str, Any]]) -> None:
        texts = [list(_texts(task)) for task in tasks]
        counted = Counter(
            run for task in texts for run in {run for _, words in task for run in _runs(words)}
        )
        shared = max(1, len(texts) // _SHARED)
        self._own = {run for run, count in counted.items() if count <= shared}
        self._texts = list(dict.fromkeys(one for task in texts for one in task))

    def find(self, texts: Iterable[str]) -> Overlap | None:
        """The longest run of words that the prompt's texts have from one task; None without any."""
        found: set[Words] = set()
        sizes = {len(run) for run in self._own}
        for text in texts:
            words = _words(text)
            for size in sizes:
                found |= self._own.intersection(_of_size(words, size))
        if not found:
            return None
        overlaps = [
            Overlap(field, " ".join(run))
            for field, words in self._texts
            for run in _joined(words, found)
        ]
        return max(overlaps, key=lambda overlap: len(overlap.text))


def _texts(task: Mapping[str, Any]) -> Iterator[tuple[str, Words]]:
    """The field and the words of each text in a task."""
    for field, value in task.items():
        yield from ((field, words) for text in _leaves(value) if (words := _words(text)))


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in cast("Mapping[str, Any]", value).values():
            yield from _leaves(one)
    elif isinstance(value, list):
        for one in cast("list[Any]", value):
            yield from _leaves(one)


def _words(text: str) -> Words:
    return tuple(_WORD.findall(text.casefold()))


def _runs(words: Words) -> Iterator[Words]:
    if len(words) >= SHORTEST:
        yield from _of_size(words, min(RUN, len(words)))


def _of_size(words: Sequence[str], size: int) -> Iterator[Words]:
    return (tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def _joined(words: Words, found: set[Words]) -> Iterator[Words]:
    """Runs of a text that were found, those that follow one another as one."""
    begin: int | None = None
    end = 0
    for start, run in enumerate(_runs(words)):
        if run in found:
            begin = start if begin is None else begin
            end = start + len(run)
        elif begin is not None:
            yield words[begin:end]
            begin = None
    if begin is not None:
        yield words[begin:end]
