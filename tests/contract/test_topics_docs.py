"""docs/reference/topics.md has the topics that the code makes, with their keys, schemas and
retention.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fulgurite.topics import TOPICS, Topic

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "topics.md").read_text()
DAY_MS = 24 * 3600 * 1000


def snake_case(name: str) -> str:
    return re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()


def kept(topic: Topic) -> str:
    if topic.cleanup == "compact":
        return "compacted"
    return "for ever" if topic.retention_ms == -1 else f"{topic.retention_ms // DAY_MS} days"


def documented() -> dict[str, list[str]]:
    """The cells of each topic's row."""
    rows = re.findall(r"^\| `([a-z.]+)` \|(.+)\|$", PAGE, re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}


def test_every_topic_has_a_row_and_no_other() -> None:
    assert list(documented()) == [topic.name for topic in TOPICS]


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_a_row_says_what_the_code_makes(topic: Topic) -> None:
    schemas = [snake_case(event.__name__) for event in topic.carries]
    row = documented()[topic.name]
    assert row[:4] == [
        topic.key.value,
        str(topic.partitions),
        ", ".join(f"`{schema}`" for schema in schemas),
        kept(topic),
    ]
    assert all((ROOT / "schemas" / "avro" / f"{schema}.avsc").exists() for schema in schemas)
