"""Runs a script as a notebook does: it may await at the top level. `python -P notebook.py SCRIPT`;
imports nothing of ours.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import sys
from pathlib import Path


def main() -> None:
    """Run it."""
    script = Path(sys.argv[1])
    code = compile(script.read_text(), str(script), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    running = eval(code, {"__name__": "__main__"})
    if inspect.iscoroutine(running):
        asyncio.run(running)


if __name__ == "__main__":
    main()
