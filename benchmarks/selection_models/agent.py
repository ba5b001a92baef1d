"""An agent that asks its model one question: plain OpenAI SDK, nothing else."""

from __future__ import annotations

import json
import os

from openai import OpenAI


def main() -> None:
    """Print the model's answer to the task's question."""
    question = json.loads(os.environ["TASK"])["question"]
    # A failed call is a failed episode here, not one to repeat.
    completion = OpenAI(max_retries=0).chat.completions.create(
        model="policy",
        messages=[{"role": "user", "content": question}],
        temperature=0.5,
        max_tokens=12,
    )
    print(completion.choices[0].message.content)


if __name__ == "__main__":
    main()
