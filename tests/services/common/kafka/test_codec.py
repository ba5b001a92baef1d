"""The setting that names the implementation of Avro."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.common.kafka.codec import make_codec


def test_the_compiled_functions_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FULGURITE_AVRO", raising=False)
    assert make_codec().implementation == "compiled"


def test_fastavro_can_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FULGURITE_AVRO", "fastavro")
    assert make_codec().implementation == "fastavro"


def test_another_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FULGURITE_AVRO", "avro-python3")
    with pytest.raises(ValidationError, match="FULGURITE_AVRO"):
        make_codec()
