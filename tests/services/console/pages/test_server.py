"""What the server says of its files."""

from __future__ import annotations

from pathlib import Path

from starlette.testclient import TestClient

from services.console.pages.server import Assets


def test_a_file_that_is_named_with_its_digest_is_never_asked_for_again(tmp_path: Path) -> None:
    (tmp_path / "console.css").write_text("body {}")
    browser = TestClient(Assets(directory=tmp_path))
    assert "immutable" in browser.get("/console.css?0123456789ab").headers["cache-control"]
    # The form that asks for a key names it without: it must see changes.
    assert "cache-control" not in browser.get("/console.css").headers
