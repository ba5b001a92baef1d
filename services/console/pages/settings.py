"""Settings of the console's pages, from the environment (`FULGURITE_*`)."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_LOCAL = ("localhost", "127.0.0.1", "::1")


class PageSettings(BaseSettings):
    """Who reaches the console's pages, and who may act."""

    model_config = SettingsConfigDict(
        env_prefix="FULGURITE_", extra="ignore", use_attribute_docstrings=True
    )

    console_host: str = "127.0.0.1"
    """Address that the console listens on. Beyond this machine it needs
    `FULGURITE_CONSOLE_READ_KEY`, or `FULGURITE_CONSOLE_OPEN`."""
    console_port: int = Field(default=8090, ge=0, le=65535)
    """Port that the console listens on; 0: any that is free."""
    console_read_key: SecretStr | None = None
    """Key that opens the console for reading. Without it, everybody who reaches the port may
    read."""
    admin_key: SecretStr | None = None
    """Key that allows actions; the gateway has the same. Without it nobody can act."""
    console_open: bool = False
    """Let everybody read who reaches a port that is open beyond this machine, where something else
    keeps strangers out."""
    console_published: str = ""
    """Address at which a container's port is published; it counts in place of
    `FULGURITE_CONSOLE_HOST`, which is then the container's own."""
    console_allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Host names that browsers may ask for, comma-separated, besides `localhost` and
    `FULGURITE_CONSOLE_HOST`. It keeps other sites from reading the console through a browser (DNS
    rebinding)."""
    console_tokenizer: Path | None = None
    """Folder of the model, with `tokenizer.json`, by which the page of a rollout shows tokens as
    text; without it, as numbers."""
    console_session_hours: float = Field(default=12, gt=0, le=24 * 30)
    """Hours after which a key must be entered again."""

    @field_validator("console_allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip().lower() for name in value.split(",") if name.strip())
        return value

    @field_validator("console_read_key", "admin_key")
    @classmethod
    def _unset(cls, value: SecretStr | None) -> SecretStr | None:
        return value if value is not None and value.get_secret_value() else None

    @model_validator(mode="after")
    def _closed_to_strangers(self) -> Self:
        reached_at = self.console_published or self.console_host
        if not (is_local(reached_at) or self.console_read_key or self.console_open):
            raise ValueError(
                f"At {reached_at} the console can be reached from beyond this machine. Set "
                "FULGURITE_CONSOLE_READ_KEY, or FULGURITE_CONSOLE_OPEN=true if something else "
                "keeps strangers out."
            )
        return self

    def hosts(self) -> frozenset[str]:
        """Host names that browsers may ask for."""
        return frozenset((*_LOCAL, self.console_host.lower(), *self.console_allowed_hosts))


def is_local(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
