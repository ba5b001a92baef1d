"""Colours the tokens of an answer by log-probability or by advantage.

One hue goes from none to full for log-probabilities; advantages have a blue and an orange side.
The text's own colour stays, and the pointer shows the number.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.console.pages.blocks import Token, Tokens
from services.console.pages.formats import fixed

_UNLIKELY = "#D55E00"
_POSITIVE = "#0072B2"
_FULL = 5.0
"""Nats at which a token has all of its colour: a probability of 0.7%."""
_MOST = 55
"""Percent of colour in the background: more would make the text hard to read."""


def by_logprob(pieces: Sequence[str], logprobs: Sequence[float], title: str) -> Tokens:
    """Tokens by how unlikely they were."""
    return Tokens(
        tuple(
            Token(piece, _mixed(_UNLIKELY, -value / _FULL), f"log-probability {fixed(value)}")
            for piece, value in zip(pieces, logprobs, strict=False)
        ),
        title,
        (
            Token("likely"),
            Token("−1.25", _mixed(_UNLIKELY, 0.25)),
            Token("−2.5", _mixed(_UNLIKELY, 0.5)),
            Token("−5 nats or less", _mixed(_UNLIKELY, 1)),
        ),
        folded=True,
    )


def by_advantage(
    actions: Sequence[tuple[Sequence[str], float | None, str | None]], title: str
) -> Tokens:
    """Answers by their advantage. An action is its tokens, its advantage, and why it is not
    trained, if it is not; those are faint.
    """
    greatest = max((abs(value) for _, value, _ in actions if value is not None), default=0.0)
    tokens: list[Token] = []
    for pieces, value, mask in actions:
        part = 0.0 if value is None or not greatest else value / greatest
        colour = _mixed(_POSITIVE if part > 0 else _UNLIKELY, abs(part))
        note = f"not trained: {mask}" if mask else f"advantage {fixed(value)}"
        tokens += [Token(piece, "" if mask else colour, note, bool(mask)) for piece in pieces]
        tokens.append(Token(" ⏎\n", "", "end of the answer", faint=True))
    return Tokens(
        tuple(tokens),
        title,
        (
            Token(f"+{fixed(greatest)}: more of this", _mixed(_POSITIVE, 1)),
            Token("0"),
            Token(f"−{fixed(greatest)}: less of this", _mixed(_UNLIKELY, 1)),
            Token("not trained", "", "", faint=True),
        ),
    )


def _mixed(colour: str, part: float) -> str:
    """A colour mixed into the panel's."""
    percent = round(_MOST * min(1.0, max(0.0, part)))
    return f"color-mix(in srgb, {colour} {percent}%, var(--panel))" if percent else ""
