"""Why a chat model gave no answer.

ChatFailed
├── ChatRefused          the model or its server declined, and would again
└── ChatPassingFailure   asking again may help
    ├── ChatUnreachable  no answer: connection, time-out, overload, an error of the server's
    └── ChatUnreadable   an answer that is no chat completion
"""

from __future__ import annotations


class ChatFailed(Exception):
    """Base of the tree. The text never holds a key."""


class ChatRefused(ChatFailed):
    """The model or its server declined the question, and would again."""


class ChatPassingFailure(ChatFailed):
    """A temporary failure: asking again may help."""


class ChatUnreachable(ChatPassingFailure):
    """No answer came from the server."""


class ChatUnreadable(ChatPassingFailure):
    """The server's answer is not a chat completion."""
