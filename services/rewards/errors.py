"""What may go wrong with reward functions.

Exception
├── ValueError
│   └── PluginError     a function cannot be loaded
└── RewardFailed    a function gave no usable value for an episode
    ├── TookTooLong     it was still at it when its time was up
    ├── OutOfMemory     it wanted more memory than it may have
    └── ProcessEnded    it took its process with it
"""

from __future__ import annotations


class PluginError(ValueError):
    """The reward function could not be loaded; the message says why and what is expected."""


class RewardFailed(Exception):
    """The reward function gave no usable value for an episode."""


class TookTooLong(RewardFailed):
    """Its time was up; its process was ended."""


class OutOfMemory(RewardFailed):
    """It wanted more memory than it may have."""


class ProcessEnded(RewardFailed):
    """Its process ended: a crash of native code, an exit, the kernel's out-of-memory killer."""
