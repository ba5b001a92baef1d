"""The client's error tree.

ClientError
├── MissingAdminKey       no admin key was given
├── GatewayRefused        the gateway answered with an error that trying again does not help
└── GatewayUnreachable    the gateway did not answer, or not in time
"""

from __future__ import annotations


class ClientError(Exception):
    """Base of the tree. The text says what to do."""


class MissingAdminKey(ClientError):
    """No admin key was given."""


class GatewayRefused(ClientError):
    """The gateway answered with an error that trying again does not help."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class GatewayUnreachable(ClientError):
    """The gateway did not answer, or not in time."""
