"""Makes the codec of a service, as its settings say."""

from __future__ import annotations

from fulgurite.avro.codec import Codec
from services.common.kafka.settings import KafkaSettings


def make_codec() -> Codec:
    """The codec with the implementation that `FULGURITE_AVRO` names. Make one per process."""
    return Codec(implementation=KafkaSettings().avro)
