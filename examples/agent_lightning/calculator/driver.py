"""Runs Agent Lightning's calculator agent, as it was published, on the task in TASK."""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(sys.prefix) / "sdists/agentlightning-0.1.2/examples/calc_x"))
# The agent starts its calculator with `uvx`: it gets the one that is installed.
folders = Path(__file__).parent / "bin", Path(sys.prefix) / "bin"
os.environ["PATH"] = os.pathsep.join([*map(str, folders), os.environ["PATH"]])

from agentlightning import LLM  # noqa: E402
from calc_agent import CalcAgent  # noqa: E402

# The agent pays itself for this answer: nobody looks at that.
task = {"question": json.loads(os.environ["TASK"])["question"], "result": ""}
model = LLM(endpoint=os.environ["OPENAI_BASE_URL"], model="calculator")
asyncio.run(CalcAgent().training_rollout_async(task, "", {"main_llm": model}))
