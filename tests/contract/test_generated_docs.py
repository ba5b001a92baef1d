"""The generated pages of the documentation are what docs/generate.py writes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

GENERATOR = Path(__file__).parents[2] / "docs" / "generate.py"


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("docs_generate", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "text"),
    generator().pages().items(),
    ids=lambda part: part.name if isinstance(part, Path) else "",
)
def test_a_generated_page_is_fresh(page: Path, text: str) -> None:
    assert page.read_text() == text, (
        f"{page} is stale: run `make reference` and commit what it writes"
    )
