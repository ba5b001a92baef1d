"""What people see on a terminal. Texts of agents, models, tasks and errors come with nothing that
it would obey (`services.common.runtime.escaping`).
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment

from services.common.runtime.escaping import escaped


def plain(text: object) -> str:
    """Any value as text to put between rich's markup: escaped, and no markup of its own."""
    return escape(escaped(str(text)))


class EscapingConsole(Console):
    """Escapes whatever it is given to show, and follows no links."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As rich does; the cursor's movements are rich's own and stay."""
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
    """The console of a command: lines are not cut, numbers not coloured, `:name:` stays as
    it is.
    """
    return EscapingConsole(stderr=stderr, soft_wrap=soft_wrap, highlight=False, emoji=False)
