"""What users import from `fulgurite`, and that nothing else is loaded for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fulgurite
from fulgurite import episode_view


@pytest.mark.parametrize("name", fulgurite.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(fulgurite, name).__name__ == name


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Episodes'"):
        _ = fulgurite.Episodes  # pyright: ignore


def test_the_former_place_of_the_view_still_works() -> None:
    assert episode_view.EpisodeView is fulgurite.EpisodeView


def test_a_module_without_needs_loads_neither_avro_nor_numpy() -> None:
    code = (
        "import sys, fulgurite.versions; sys.exit(bool({'fastavro', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
