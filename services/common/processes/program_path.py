"""Where programs that are started here find others."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def own_programs_first() -> str:
    """PATH with the folder of this Python before it, so that `python` and `fulgurite` are those of
    this environment.
    """
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
