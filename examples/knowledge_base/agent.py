"""An agent that answers questions from a knowledge base: OpenAI's Agents SDK, one tool.

It finds its model through OPENAI_BASE_URL and OPENAI_API_KEY. The task is a JSON object with a
`question` and a `knowledge` base (an SQLite file), in the variable TASK or on standard input. It
prints the model's last words.
"""

# The Agents SDK is not installed where the types are checked.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys

import knowledge
from agents import (
    Agent,
    MaxTurnsExceeded,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

MAX_TOKENS = 24
MAX_TURNS = 5
INSTRUCTIONS = (
    "Answer the question. Search with a few words, read the result, search again, then answer."
)


async def solve(question: str, file: str, temperature: float) -> str:
    """The model's answer, or what stopped it."""

    @function_tool
    def search(query: str) -> str:
        """Finds the best passage that has all the words.

        Args:
            query: A few words.
        """
        return knowledge.search(file, query)

    set_tracing_disabled(disabled=True)
    async with AsyncOpenAI() as client:
        agent = Agent(
            name="researcher",
            instructions=INSTRUCTIONS,
            tools=[search],
            model=OpenAIChatCompletionsModel("policy", openai_client=client),
            model_settings=ModelSettings(temperature=temperature, max_tokens=MAX_TOKENS),
        )
        try:
            result = await Runner.run(agent, question, max_turns=MAX_TURNS)
        except MaxTurnsExceeded as error:
            return str(error)
    return str(result.final_output)


def main() -> None:
    """Answer one question."""
    parser = argparse.ArgumentParser(description="Answer a question from a knowledge base.")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    options = parser.parse_args()
    task = json.loads(os.environ.get("TASK") or sys.stdin.read())
    print(asyncio.run(solve(task["question"], task["knowledge"], options.temperature)))


if __name__ == "__main__":
    main()
