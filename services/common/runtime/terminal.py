"""Makes consoles that escape texts of agents, models, tasks and errors before they are shown.

See `services.common.runtime.escaping`.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment

from services.common.runtime.escaping import escaped


def plain(text: object) -> str:
    """Return a value as text without markup, escaped, to use within rich's markup."""
    return escape(escaped(str(text)))


class EscapingConsole(Console):
    """A console that escapes all texts and shows no links."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render as rich does, and escape texts; rich's own cursor movements stay."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                style = (
                    segment.style.update_link(None)
                    if segment.style and segment.style.link
                    else segment.style
                )
                yield Segment(escaped(segment.text), style)


def make_console(*, stderr: bool = False, soft_wrap: bool = True) -> Console:
    """Make a command's console: it cuts no lines, colours no numbers and replaces no `:name:`."""
    return EscapingConsole(stderr=stderr, soft_wrap=soft_wrap, highlight=False, emoji=False)
