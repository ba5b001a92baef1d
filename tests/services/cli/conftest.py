"""Fixtures for tests of commands, which they call in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest.mock import patch

import pytest


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """`fulgurite train` hands its options to the learner by the process's environment."""
    with patch.dict(os.environ):
        yield
