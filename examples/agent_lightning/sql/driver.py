"""Runs Agent Lightning's SQL agent, as it was published, on the task in the variable TASK."""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["MODEL"] = "sql"
sys.path.insert(0, str(Path(sys.prefix) / "sdists/agentlightning-0.1.2/examples/spider"))

from sql_agent import SQLAgent

task = json.loads(os.environ["TASK"])
agent = SQLAgent(f"sqlite:///{task['database']}", max_turns=2).graph()
print(agent.invoke({"question": task["question"]}, {"recursion_limit": 100})["query"])
