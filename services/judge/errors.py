"""Why a judge gives a trajectory no score. The class's name and the text are what a reward's
`error` says.

JudgeFailed
├── TooFewTrajectories   nothing to compare with
├── NothingSaid          this trajectory has no message to judge
├── JudgeRefused         the model declined, or its server did not accept the question
└── PassingFailure       asking again may help
    ├── JudgeUnreachable     no answer: connection, time-out, overload, an error of the server's
    └── BadVerdict           an answer, but not one score in [0, 1] for every trajectory
"""

from __future__ import annotations


class JudgeFailed(Exception):
    """There is no score."""

    def text(self) -> str:
        """Return the text of the reward event's `error`: class and reason."""
        return f"{type(self).__name__}: {self}"


class TooFewTrajectories(JudgeFailed):
    """Scores are relative: a judge needs two at least."""


class NothingSaid(JudgeFailed):
    """The attempt left no answered call, or none that can be read."""


class JudgeRefused(JudgeFailed):
    """The same question would be declined again."""


class PassingFailure(JudgeFailed):
    """The same question may be answered the next time."""


class JudgeUnreachable(PassingFailure):
    """No answer came."""


class BadVerdict(PassingFailure):
    """The answer cannot be used."""
