"""Every test that names `overlay` is run for each."""

from __future__ import annotations

import pytest

from tests.deploy.rendering import OVERLAYS


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    """An overlay's name."""
    return request.param
