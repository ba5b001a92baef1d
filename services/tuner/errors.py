"""The tuner's error tree.

TunerError
├── CannotTune        nothing can be tuned as asked: no examples, no system prompt, a version that
│                     no call fits
└── ReflectionFailed  the reflection model gave no answer
"""

from __future__ import annotations


class TunerError(Exception):
    """Base of the tree. The text says what to do."""


class CannotTune(TunerError):
    """Nothing can be tuned as asked."""


class ReflectionFailed(TunerError):
    """The reflection model gave no answer."""
