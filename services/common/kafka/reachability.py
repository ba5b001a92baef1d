"""Checks that a Kafka broker answers before a command uses it.

A Kafka client would keep trying, and log errors, until its time-out.
"""

from __future__ import annotations

import socket

from services.common.kafka.errors import LogUnavailable
from services.common.kafka.settings import KafkaSettings

_TIMEOUT_S = 5.0
_PORT = 9092
"""librdkafka's default port."""


def answering(settings: KafkaSettings) -> KafkaSettings:
    """Return the settings if one of the brokers accepts a connection. Raises LogUnavailable."""
    problem: Exception | None = None
    for address in settings.bootstrap_servers.split(","):
        try:
            socket.create_connection(_place(address), _TIMEOUT_S).close()
        except (OSError, ValueError) as error:
            problem = error
        else:
            return settings
    raise LogUnavailable(
        f"no Kafka broker answers at {settings.bootstrap_servers} (KAFKA_BOOTSTRAP_SERVERS): "
        f"{problem}. Start it, or set the variable to the right address."
    ) from problem


def _place(address: str) -> tuple[str, int]:
    """Parse `host`, `host:port`, `[::1]:port` or `PROTOCOL://host:port`."""
    host, colon, port = address.strip().rpartition("://")[2].rpartition(":")
    return (host.strip("[]"), int(port)) if colon else (port, _PORT)
