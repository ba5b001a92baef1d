"""Errors of the local stack, as a tree.

StackError
├── RequirementMissing  a package, a program or a file that a local service needs is not there
├── ChecksumMismatch    a file is not the one that `local_services.toml` pins
├── AlreadyRunning      another stack uses the data folder
├── PoliciesConflict    one vLLM cannot serve the policies of a run's file together
├── SettingsInvalid     a key of the run's file, a setting of vLLM, or a folder is wrong
├── PortTaken           another program listens where the gateway is to listen
└── LayoutChanged       a data folder was made for another number of brokers
"""

from __future__ import annotations


class StackError(Exception):
    """The local stack cannot do what was asked; the message says what to do."""


class RequirementMissing(StackError):
    """Something to be installed first."""


class ChecksumMismatch(StackError):
    """A downloaded or cached file differs from the pinned one."""


class AlreadyRunning(StackError):
    """Two stacks on one data folder would ruin each other's topics."""


class PoliciesConflict(StackError):
    """One vLLM cannot serve these policies together."""


class SettingsInvalid(StackError):
    """A key of the run's file, a setting of vLLM, or a folder is wrong."""


class PortTaken(StackError):
    """The gateway could not listen, and another program would answer in its place."""


class LayoutChanged(StackError):
    """A data folder that another layout would destroy."""
