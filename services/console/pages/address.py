"""The address of a page: its path, and filters as the query. What is shown is a function of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode


@dataclass(frozen=True)
class Address:
    """A path and the filters that are set."""

    path: str
    query: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def read(cls, path: str, pairs: Iterable[tuple[str, str]]) -> Address:
        """The address of a request. Filters without a value are not set."""
        return cls(path, {name: value.strip() for name, value in pairs if value.strip()})

    def get(self, name: str) -> str | None:
        """The value of a filter, None if it is not set."""
        return self.query.get(name)

    def number(self, name: str, least: int = 0) -> int | None:
        """The value of a filter that is a whole number; None if it is not set, not one or too
        small.
        """
        text = self.query.get(name, "")
        return max(least, int(text)) if text.isdecimal() and len(text) < 10 else None

    def choice(self, name: str, choices: Iterable[str], default: str) -> str:
        """The value of a filter that has a few, `default` if it has another."""
        value = self.query.get(name)
        return value if value is not None and value in choices else default

    def but(self, **changes: str | None) -> str:
        """This address with other filters; None removes one."""
        query = {name: value for name, value in (dict(self.query) | changes).items() if value}
        return link(self.path, **query)

    def kept(self, *shown: str) -> tuple[tuple[str, str], ...]:
        """The filters that a form with `shown` must keep; the page of a table is not one."""
        return tuple(
            (name, value) for name, value in self.query.items() if name not in (*shown, "page")
        )

    def __str__(self) -> str:
        return self.but()


def link(path: str, **query: str | None) -> str:
    """The address of a page with filters; those that are None are left out."""
    given = {name: value for name, value in query.items() if value is not None}
    return quote(path) + (f"?{urlencode(given)}" if given else "")
