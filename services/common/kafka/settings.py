"""Where Kafka is, and how to log in to it."""

from __future__ import annotations

from typing import Any

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from fulgurite.avro.codec import AvroImplementation
from fulgurite.topics import Topic, topic_name


class KafkaSettings(BaseSettings):
    """Kafka's address, security and topic names.

    The variables have the conventional KAFKA_* names, because managed offerings hand those out.
    """

    model_config = SettingsConfigDict(
        populate_by_name=True, extra="ignore", use_attribute_docstrings=True
    )

    bootstrap_servers: str = Field(
        default="127.0.0.1:9092", validation_alias="KAFKA_BOOTSTRAP_SERVERS"
    )
    """Brokers as `host:port`, comma-separated."""
    security_protocol: str = Field(default="PLAINTEXT", validation_alias="KAFKA_SECURITY_PROTOCOL")
    """`PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or `SASL_SSL`."""
    sasl_mechanism: str | None = Field(default=None, validation_alias="KAFKA_SASL_MECHANISM")
    """`PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`."""
    sasl_username: str | None = Field(default=None, validation_alias="KAFKA_SASL_USERNAME")
    """User name, with SASL."""
    sasl_password: SecretStr | None = Field(default=None, validation_alias="KAFKA_SASL_PASSWORD")
    """Password, with SASL. Never logged."""
    ssl_ca_location: str | None = Field(default=None, validation_alias="KAFKA_SSL_CA_LOCATION")
    """PEM file of the brokers' certificate authority; the system's if unset."""
    topic_prefix: str = Field(default="fulgurite.", validation_alias="FULGURITE_TOPIC_PREFIX")
    """Begins the name of every topic and consumer group, so that one cluster can carry several
    deployments."""
    replication: int = Field(default=1, ge=1, validation_alias="FULGURITE_REPLICATION")
    """Replicas of each topic when it is created; `min.insync.replicas` is their majority. Use 3
    for promises that outlive a broker."""
    avro: AvroImplementation = Field(default="compiled", validation_alias="FULGURITE_AVRO")
    """How events are encoded and decoded: `compiled`, or `fastavro`, the slower reference. Bytes
    and values are the same."""

    def topic(self, topic: Topic) -> str:
        """Return the topic's name on the broker."""
        return topic_name(topic, self.topic_prefix)

    def client_config(self) -> dict[str, Any]:
        """Return librdkafka's settings for address and security."""
        config: dict[str, Any] = {
            "bootstrap.servers": self.bootstrap_servers,
            "security.protocol": self.security_protocol,
            "sasl.mechanism": self.sasl_mechanism,
            "sasl.username": self.sasl_username,
            "sasl.password": self.sasl_password.get_secret_value() if self.sasl_password else None,
            "ssl.ca.location": self.ssl_ca_location,
        }
        return {name: value for name, value in config.items() if value is not None}
