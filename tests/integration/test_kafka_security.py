"""A broker that asks for TLS and a password: producers, readers and the stream processors get in
with the settings, and only with them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fulgurite.avro.codec import Codec
from fulgurite.topics import AGENT_STATUS
from services.common.kafka.consumer import read_all
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topics
from services.common.processes.process import ChildProcess
from services.local_stack.kafka_local import LocalKafka
from tests.integration.certificates import self_signed
from tests.synthetic import make_declared

pytestmark = pytest.mark.engine

USER, PASSWORD = "fulgurite", "a-password-of-the-log"
_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule"


class SecuredKafka(LocalKafka):
    """One broker whose clients need SASL over TLS."""

    def __init__(self, data: Path) -> None:
        super().__init__(data, heap_mb=384)
        self.data.mkdir(parents=True, exist_ok=True)
        self.certificate, key = self_signed(self.data)
        self._store = self.data / "broker.pem"
        self._store.write_bytes(key.read_bytes() + self.certificate.read_bytes())

    def _properties(self, node: int, folder: Path) -> dict[str, object]:
        known = super()._properties(node, folder)
        clients: dict[str, object] = {
            name: str(known[name]).replace("PLAINTEXT://", "CLIENT://")
            for name in ("listeners", "advertised.listeners")
        }
        return known | clients | self._security()

    def _security(self) -> dict[str, object]:
        login = (
            f'{_PLAIN} required username="broker" password="among-brokers" '
            'user_broker="among-brokers" '
            f'user_{USER}="{PASSWORD}";'
        )
        return {
            "listener.security.protocol.map": "CLIENT:SASL_SSL,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "CLIENT",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "listener.name.client.plain.sasl.jaas.config": login,
            "listener.name.client.scram-sha-256.sasl.jaas.config": f"{_SCRAM} required;",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self._store,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.certificate,
        }

    def _java(self, *arguments: str) -> list[str]:
        user = f"SCRAM-SHA-256=[name={USER},password={PASSWORD}]"
        return super()._java(*arguments, *(("--add-scram", user) if "format" in arguments else ()))


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    with SecuredKafka(tmp_path_factory.mktemp("secured")) as broker:
        yield broker


def settings_of(
    broker: SecuredKafka, mechanism: str, prefix: str, password: str = PASSWORD
) -> dict[str, str]:
    return {
        "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_SASL_MECHANISM": mechanism,
        "KAFKA_SASL_USERNAME": USER,
        "KAFKA_SASL_PASSWORD": password,
        "KAFKA_SSL_CA_LOCATION": str(broker.certificate),
        "FULGURITE_TOPIC_PREFIX": prefix,
    }


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
def test_what_is_written_is_read(secured: SecuredKafka, mechanism: str, topic_prefix: str) -> None:
    settings, codec, event = (
        KafkaSettings.model_validate(settings_of(secured, mechanism, topic_prefix)),
        Codec(),
        make_declared(),
    )
    create_topics(settings)
    producer = EventProducer(settings, codec, "test")
    try:
        producer.publish_sync(AGENT_STATUS, event.group_id, event)
    finally:
        producer.close()
    assert [record.event for record in read_all(settings, AGENT_STATUS, codec)] == [event]


def test_a_wrong_password_is_told_and_never_shown(
    secured: SecuredKafka, topic_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = KafkaSettings.model_validate(
        settings_of(secured, "SCRAM-SHA-256", topic_prefix, "not-that-password")
    )
    producer, event = (
        EventProducer(settings, Codec(), "test", delivery_timeout_s=3),
        make_declared(),
    )
    try:
        with pytest.raises(LogUnavailable):
            producer.publish_sync(AGENT_STATUS, event.group_id, event, timeout_s=5)
    finally:
        producer.close(1)
    assert "uthentication failed" in caplog.text
    assert "not-that-password" not in caplog.text + repr(settings)


def test_the_aggregator_gets_in(secured: SecuredKafka, topic_prefix: str, tmp_path: Path) -> None:
    environment = settings_of(secured, "SCRAM-SHA-256", topic_prefix)
    create_topics(KafkaSettings.model_validate(environment))
    log = tmp_path / "aggregator.log"
    argv = [sys.executable, "-m", "services.aggregator.main"]
    with ChildProcess(argv, log, env={**os.environ, **environment}) as process:
        wait_for(process, log, '"event": "ready"')
        process.terminate()
        assert process.wait(20) == 0
    assert PASSWORD not in log.read_text()


def wait_for(process: ChildProcess, log: Path, text: str) -> None:
    end = time.monotonic() + 60
    while text not in log.read_text():
        assert process.is_running, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)
