"""Defines the errors of the pure core.

    FulguriteError
    ├── CodecError
    │   ├── MalformedFrame      bytes are not a Confluent-framed event
    │   ├── UnknownSchema       the frame's schema id is known to nobody here
    │   └── InvalidEvent        an event does not fit its schema
    ├── BadClaim                a payload that lies elsewhere is missing or altered
    ├── BrokenDelta             a delta and its parent do not give the call that was recorded
    └── UnknownRule             no credit rule or built-in reward of that name, or not with those parameters

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
    """The schema id of a frame is known neither here nor to the registry."""


class InvalidEvent(CodecError):
    """An event does not fit its schema, or its bytes do not fit the schema they name."""


class BadClaim(FulguriteError):
    """What a call left elsewhere cannot be read, or is not what it left."""


class BrokenDelta(FulguriteError):
    """A delta and what was read as its parent do not give the call that was recorded."""


class UnknownRule(FulguriteError):
    """No credit rule or built-in reward has that name, or not with those parameters; the message
    says what there is.
    """
