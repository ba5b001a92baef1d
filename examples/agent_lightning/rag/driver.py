"""Runs Agent Lightning's RAG agent, as it was published, on the task in the variable TASK.

The agent searches through a server of its own protocol (MCP), which it expects at a fixed address:
here each rollout has one, over the task's knowledge base, at a free one.
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUntypedFunctionDecorator=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from pathlib import Path

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
sys.path.insert(0, str(Path(sys.prefix) / "sdists/agentlightning-0.1.2/examples/rag"))
sys.path.append(str(Path(__file__).parents[2] / "knowledge_base"))

import knowledge
import uvicorn
from agentlightning import LLM
from mcp.server import MCPServer
from rag_agent import RAGAgent


async def main() -> None:
    """Answer one question."""
    task = json.loads(os.environ["TASK"])
    server = MCPServer("wiki retrieval mcp")

    @server.tool()
    def retrieve(query: str) -> str:
        """Retrieve the best passage that has all the words."""
        return knowledge.search(task["knowledge"], query)

    web = uvicorn.Server(uvicorn.Config(server.sse_app(), log_level="error", lifespan="on"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(web.serve([listening]))
        agent = RAGAgent()
        agent.mcp_server_url = f"http://127.0.0.1:{listening.getsockname()[1]}/sse"
        model = LLM(endpoint=os.environ["OPENAI_BASE_URL"], model="rag")
        # The agent pays itself for this answer: nobody looks at that.
        question = {"question": task["question"], "answer": ""}
        try:
            await agent.training_rollout_async(question, "", {"main_llm": model})
        finally:
            web.should_exit = True
            await serving


asyncio.run(main())
