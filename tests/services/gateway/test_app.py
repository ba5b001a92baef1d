"""What a gateway says of its settings when it starts."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import MagicMock

import pytest

from services.gateway import app
from tests.fuzz.gateway import in_process


@pytest.mark.parametrize(
    ("keys", "admin_key", "short"),
    [
        ("", "key-of-an-operator", 0),
        ("", "operator", 1),
        ("sixteen-letters!", "key-of-an-operator", 0),
        ("fifteen-letters", "key-of-an-operator", 1),
        ("test,EMPTY,a-key-of-an-agent", "key-of-an-operator", 2),
    ],
)
async def test_keys_too_short_to_be_hidden_are_counted_in_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: str, admin_key: str, short: int
) -> None:
    log = MagicMock()
    monkeypatch.setattr(app, "log", log)
    async with in_process(tmp_path, api_keys=keys, admin_key=admin_key):
        pass
    assert [call.kwargs["keys"] for call in log.warning.call_args_list] == [short] * bool(short)
