"""Turns token ids into texts, where the model's tokenizer is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol


class Tokenizer(Protocol):
    """Knows the text of a token."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token."""
        ...


class TokenNumbers:
    """Writes ids, where there is no tokenizer."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each id and a space."""
        return [f"{one} " for one in ids]


class FileTokenizer:
    """The tokenizer of a Hugging Face folder, `tokenizer.json`."""

    def __init__(self, file: Path) -> None:
        self._tokenizer: Any = import_module("tokenizers").Tokenizer.from_file(str(file))
        self._piece = lru_cache(maxsize=1 << 16)(self._decode)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token. A token that is part of a character has a replacement sign."""
        return [self._piece(one) for one in ids]

    def _decode(self, one: int) -> str:
        return str(self._tokenizer.decode([one], skip_special_tokens=False))


def open_tokenizer(folder: Path | None) -> Tokenizer:
    """The tokenizer of a model's folder; without one, or without the library `tokenizers`, ids."""
    file = folder / "tokenizer.json" if folder else None
    if file is None or not file.is_file():
        return TokenNumbers()
    try:
        return FileTokenizer(file)
    except ImportError:
        return TokenNumbers()
