"""An agent as many are written: one model client at the top of the module, one graph, and threads
that share both.

Each argument is a question, asked in a thread and a conversation of its own.
"""

# LangGraph lives in an environment of its own, which the type checker does not see.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownParameterType=false

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition


def look_up(word: str) -> str:
    """Say what a word means."""
    return f"{word}: see under {word}"


model = ChatOpenAI(model="policy").bind_tools([look_up])


def call_model(state: MessagesState) -> MessagesState:
    return {"messages": [model.invoke(state["messages"])]}


graph = (
    StateGraph(MessagesState)
    .add_node("model", call_model)
    .add_node("tools", ToolNode([look_up]))
    .add_edge(START, "model")
    .add_conditional_edges("model", tools_condition)
    .add_edge("tools", "model")
    .compile(checkpointer=InMemorySaver())
)


def ask(question: str) -> str:
    thread = {"configurable": {"thread_id": question}}
    graph.invoke({"messages": [("user", question)]}, thread)
    return graph.invoke({"messages": [("user", "Thank you. And in short?")]}, thread)["messages"][
        -1
    ].content


if __name__ == "__main__":
    questions = sys.argv[1:]
    with ThreadPoolExecutor(len(questions)) as threads:
        for answer in threads.map(ask, questions):
            print(answer)  # noqa: T201
