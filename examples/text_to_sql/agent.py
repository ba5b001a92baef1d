"""Three agents that answer a question about a database together: a LangGraph graph.

The writer writes a query, it is executed, the checker looks at what it gave, and if that is wrong,
the rewriter writes another one. The last query that may be written is not checked, since nothing
would follow. Each agent asks for a model of its own name. The task is a JSON object with a
`question` and a `database` (an SQLite file), in the variable TASK or on standard input; with a
`query` in it the work begins with that one. The last query is printed.
"""

# LangGraph is not installed where the types are checked.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
from functools import partial
from typing import Any, TypedDict

from database import Rows, run_query, tables_of
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph

QUERY_TOKENS = 64
VERDICT_TOKENS = 4
MOST_QUERIES = 2
MOST_SHOWN = 3

WRITE = "Write one SQLite query that answers the question."
CHECK = "Say whether the query answers the question: correct or wrong."
REWRITE = "The query is wrong. Write it anew."


class State(TypedDict):
    """What the graph knows of its task."""

    question: str
    database: str
    query: str
    result: str
    verdict: str
    queries: int


def ask(model: ChatOpenAI, instruction: str, state: State, *more: str) -> str:
    """The model's answer to one question about the database."""
    system = f"{instruction}\n{tables_of(state['database'])}"
    user = "\n".join((state["question"], *more))
    answer = model.invoke([SystemMessage(system), HumanMessage(user)])
    return str(answer.text).strip()


def result_of(database: str, query: str) -> str:
    """What a query gives, as one line that a model can read."""
    try:
        rows = run_query(database, query)
    except (sqlite3.Error, sqlite3.Warning) as error:
        return f"error: {error}"
    return shown(rows)


def shown(rows: Rows) -> str:
    """The number of rows, and the first ones."""
    first = ", ".join(" ".join(map(str, row)) for row in rows[:MOST_SHOWN])
    return f"{len(rows)} row{'' if len(rows) == 1 else 's'}: {first}"


def write(model: ChatOpenAI, state: State) -> dict[str, Any]:
    """Write the first query."""
    return {"query": ask(model, WRITE, state), "queries": 1}


def execute(state: State) -> dict[str, Any]:
    """Execute the query."""
    return {"result": result_of(state["database"], state["query"])}


def check(model: ChatOpenAI, state: State) -> dict[str, Any]:
    """Say whether the query is right."""
    verdict = ask(model, CHECK, state, state["query"], f"result: {state['result']}")
    return {"verdict": verdict}


def rewrite(model: ChatOpenAI, state: State) -> dict[str, Any]:
    """Write another query."""
    query = ask(model, REWRITE, state, state["query"], f"result: {state['result']}")
    return {"query": query, "queries": state["queries"] + 1}


def after_query(state: State) -> str:
    """Whether the query can still be replaced."""
    return "execute" if state["queries"] < MOST_QUERIES else END


def after_check(state: State) -> str:
    """Whether the query is to be replaced."""
    return "rewrite" if state["verdict"].lower().startswith("wrong") else END


def graph(temperature: float) -> Any:
    """The three agents, ready to be invoked with a state."""

    def model(name: str, tokens: int) -> ChatOpenAI:
        return ChatOpenAI(model=name, temperature=temperature, max_completion_tokens=tokens)

    built = StateGraph(State)
    built.add_node("write", partial(write, model("writer", QUERY_TOKENS)))
    built.add_node("execute", execute)
    built.add_node("check", partial(check, model("checker", VERDICT_TOKENS)))
    built.add_node("rewrite", partial(rewrite, model("rewriter", QUERY_TOKENS)))
    built.add_conditional_edges(START, lambda state: "execute" if state["query"] else "write")
    built.add_conditional_edges("write", after_query)
    built.add_edge("execute", "check")
    built.add_conditional_edges("check", after_check)
    built.add_conditional_edges("rewrite", after_query)
    return built.compile()


def main() -> None:
    """Answer one question."""
    parser = argparse.ArgumentParser(description="Answer a question about a database.")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    options = parser.parse_args()
    task = json.loads(os.environ.get("TASK") or sys.stdin.read())
    query = task.get("query", "")
    state = State(
        question=task["question"],
        database=task["database"],
        query=query,
        result="",
        verdict="",
        queries=1 if query else 0,
    )
    print(graph(options.temperature).invoke(state)["query"])


if __name__ == "__main__":
    main()
