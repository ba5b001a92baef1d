"""Every settings class has a section on docs/reference/settings.md, and every setting a description.

That the page has the classes' own names, defaults and descriptions is held by
tests/contract/test_generated_docs.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from tests.contract.test_generated_docs import generator

ROOT = Path(__file__).parents[2]
SECTIONS: dict[str, type[BaseSettings]] = generator().SECTIONS
SHARED = {"ChatSettings", "ClaimSettings", "ClosingSettings", "StreamSettings"}
"""Classes whose settings others inherit."""


def test_every_settings_class_has_a_section() -> None:
    defined = {
        name
        for file in (ROOT / "services").rglob("*.py")
        for name in re.findall(
            r"^class (\w+Settings)\(.*Settings\b.*\):", file.read_text(), re.MULTILINE
        )
    }
    assert defined == {settings.__name__ for settings in SECTIONS.values()} | SHARED


@pytest.mark.parametrize("title", SECTIONS)
def test_every_setting_is_described_and_stands_in_its_section(title: str) -> None:
    settings = SECTIONS[title]
    prefix = str(settings.model_config.get("env_prefix", ""))
    section = (ROOT / "docs" / "reference" / "settings.md").read_text()
    section = section.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    for name, field in settings.model_fields.items():
        assert field.description, f"{settings.__name__}.{name} has no docstring below it"
        assert f"| `{field.validation_alias or prefix + name.upper()}` |" in section
