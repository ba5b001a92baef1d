"""The errors of the index.

IndexFailed          base
├── NoIndex          there is no file, or nothing answers for it
├── BadQuery         the SQL is invalid, writes, or took too long
├── IndexLocked      another process writes the file
├── OutdatedIndex    the file has other tables, or the log began anew: build it again
└── ForeignIndex     the file is of another deployment, or no index
"""

from __future__ import annotations


class IndexFailed(Exception):
    """The index cannot do what it was asked for."""


class NoIndex(IndexFailed):
    """There is no file, or it is locked and nothing answers for it."""


class BadQuery(IndexFailed):
    """The SQL is invalid, changes something, or took too long."""


class IndexLocked(IndexFailed):
    """Another process writes the file."""


class ForeignIndex(IndexFailed):
    """The file is of another deployment, or no index."""


class OutdatedIndex(IndexFailed):
    """The file has tables of another release, or the log began anew: it must be built again."""
