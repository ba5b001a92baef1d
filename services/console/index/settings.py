"""Settings of the console's index, from the environment (`FULGURITE_CONSOLE_*`)."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class IndexSettings(BaseSettings):
    """Where the index is, and how much it keeps."""

    model_config = SettingsConfigDict(
        env_prefix="FULGURITE_CONSOLE_", extra="ignore", use_attribute_docstrings=True
    )

    index: Path = Path(".fulgurite/data/console.duckdb")
    """DuckDB file that the console keeps and `fulgurite sql` reads. It can be deleted while the
    console is stopped: the next start builds it again from the log."""
    retention_days: float = Field(default=14.0, gt=0)
    """Days after its end that a group of rollouts stays in the index, and its texts with it.
    Versions, routes and prompts stay."""
    max_gib: float = Field(default=10.0, gt=0)
    """Largest size of the index in GiB. When two thirds of it are used, it is cut to a third: the
    oldest texts and tokens go first, then the oldest groups."""
    payloads: bool = True
    """Keep what calls said, token by token, for the pages that show it. Without it the index has
    only the beginning of each text (`FULGURITE_CONSOLE_TEXT_CHARACTERS`)."""
    text_characters: int = Field(default=1_000, ge=1)
    """Characters that a table keeps of each question, answer and reward's metadata."""
    memory: str = "1GB"
    """Memory that DuckDB may use, such as `1GB`; larger queries use the disk."""
    threads: int = Field(default=2, ge=1)
    """Threads of a query."""
    query_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds after which a query is stopped."""
    prices: Path | None = None
    """Price file for the view `costs`, as `fulgurite cost --prices` takes it."""
    log_level: str = "INFO"
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`."""

    @property
    def max_bytes(self) -> int:
        """The largest size in bytes."""
        return int(self.max_gib * 1024**3)

    @property
    def retention_ms(self) -> int:
        """The retention in milliseconds."""
        return int(self.retention_days * 24 * 3600 * 1000)
