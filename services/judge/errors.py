"""Why a judge gives a trajectory no score.

A reward's `error` is the class's name and the text, so the names are part of the log.

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
    """The trajectory gets no score."""

    def text(self) -> str:
        """Return the text of the reward event's `error`: class and reason."""
        return f"{type(self).__name__}: {self}"


class TooFewTrajectories(JudgeFailed):
    """The group has fewer than two trajectories; scores are relative."""


class NothingSaid(JudgeFailed):
    """The attempt has no answered call, or none that can be read."""


class JudgeRefused(JudgeFailed):
    """The model or its server refused the question, and would again."""


class PassingFailure(JudgeFailed):
    """A temporary failure: asking again may help."""


class JudgeUnreachable(PassingFailure):
    """No answer came from the server."""


class BadVerdict(PassingFailure):
    """The answer does not give one valid score for each trajectory."""
