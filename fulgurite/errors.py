"""Defines the errors of the pure core.

    FulguriteError
    ├── CodecError
    │   ├── MalformedFrame      bytes are not a Confluent-framed event
    │   ├── UnknownSchema       the frame's schema id is not known
    │   └── InvalidEvent        an event does not fit its schema
    ├── BadClaim                a payload that is stored elsewhere is missing or altered
    ├── BadPrices               a price file is not TOML of the expected form
    ├── BrokenDelta             a delta and its parent do not give the recorded call
    ├── NoSupport               a log does not say what another router would have earned
    └── UnknownRule             a credit rule or built-in reward with an unknown name or wrong parameters

Ids and versions raise their own `ValueError`s (`fulgurite.ids.MalformedId`,
`fulgurite.versions.MalformedVersion`).
"""  # noqa: E501 - a table

from __future__ import annotations


class FulguriteError(Exception):
    """Base of the tree."""


class CodecError(FulguriteError):
    """An event could not be encoded or decoded."""


class MalformedFrame(CodecError):
    """Bytes are not a Confluent-framed Avro event."""


class UnknownSchema(CodecError):
    """The schema id of a frame is neither in this release nor in the registry."""


class InvalidEvent(CodecError):
    """An event does not fit its schema, or its bytes do not fit the schema they name."""


class BadClaim(FulguriteError):
    """A payload of a call cannot be read, or is not the one that was stored."""


class BadPrices(FulguriteError):
    """A price file is not TOML, or has an unknown key or a value that is no price."""


class BrokenDelta(FulguriteError):
    """A delta and its parent do not give the recorded call."""


class NoSupport(FulguriteError):
    """A log does not support an estimate: a variant has no share in it, or too few episodes."""


class UnknownRule(FulguriteError):
    """A credit rule or built-in reward has an unknown name or wrong parameters.

    The text lists what there is.
    """
