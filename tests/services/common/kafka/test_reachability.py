"""A broker that takes a connection, among others; and none."""

from __future__ import annotations

import socket

import pytest

from services.common.kafka.errors import LogUnavailable
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings


def at(addresses: str) -> KafkaSettings:
    return KafkaSettings.model_validate({"bootstrap_servers": addresses})


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:{}", "127.0.0.1:9,127.0.0.1:{}", " localhost:{}", "PLAINTEXT://127.0.0.1:{}"],
)
def test_any_of_the_brokers_will_do(address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        settings = at(address.format(server.getsockname()[1]))
        assert answering(settings) is settings


@pytest.mark.parametrize(
    "address", ["127.0.0.1:9", "127.0.0.1:9,[::1]:9", "127.0.0.1:port", "nowhere.invalid"]
)
def test_nobody_there_is_told_with_the_address(address: str) -> None:
    with pytest.raises(LogUnavailable) as told:
        answering(at(address))
    assert str(told.value).startswith(
        f"no Kafka broker answers at {address} (KAFKA_BOOTSTRAP_SERVERS): "
    )
