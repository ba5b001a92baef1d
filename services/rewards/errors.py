"""The error tree of reward functions.

Exception
├── ValueError
│   └── PluginError     a function cannot be loaded
└── RewardFailed    a function gave no usable value
    ├── ReturnedNoJson  it returned a value that JSON does not have
    ├── TookTooLong     it exceeded its time limit
    ├── OutOfMemory     it exceeded its memory limit
    └── ProcessEnded    its process ended
"""

from __future__ import annotations


class PluginError(ValueError):
    """The reward function could not be loaded; the message says why and what is expected."""


class RewardFailed(Exception):
    """The function gave no usable value for an episode or a call."""


class ReturnedNoJson(RewardFailed):
    """The function returned a value that JSON does not have; the text is the value and its type."""


class TookTooLong(RewardFailed):
    """The function exceeded its time limit, and its process was killed."""


class OutOfMemory(RewardFailed):
    """The function exceeded its memory limit."""


class ProcessEnded(RewardFailed):
    """The function's process ended: native code crashed, it exited, or the kernel killed it."""
