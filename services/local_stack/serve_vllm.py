"""Start vLLM in a container as a model and a run's file call for: `python -m
services.local_stack.serve_vllm --model=FOLDER ...`.

Adds to its arguments those of `vllm_settings`, and for the adapters of a run those of `serving`.
Then vLLM takes its place. Ends with 78 (EX_CONFIG) when a person has to change something.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from services.learner.config_file import load_all
from services.learner.errors import ConfigInvalid
from services.local_stack.errors import StackError
from services.local_stack.serving import Serving, plan_serving
from services.local_stack.vllm_settings import VllmSettings


def plan() -> Serving:
    """How the policies of FULGURITE_RUN are served. Raises StackError, ConfigInvalid."""
    named = os.environ.get("FULGURITE_RUN")
    return plan_serving(load_all(Path(named) if named else None))


def command(model: Path, given: Sequence[str], serving: Serving) -> list[str]:
    """The command line of vLLM. Raises StackError."""
    return [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        *VllmSettings.read().arguments(model, [*given, *serving.arguments()]),
    ]


def main(given: Sequence[str]) -> NoReturn:
    """Become vLLM, or exit with 78."""
    model = next(one for one in given if one.startswith("--model=")).partition("=")[2]
    try:
        serving = plan()
        argv = command(Path(model), given, serving)
    except (StackError, ConfigInvalid) as error:
        sys.stderr.write(f"vLLM cannot be started: {error}\n")
        sys.exit(os.EX_CONFIG)
    os.environ.update(serving.vllm_environment())
    os.execv(argv[0], argv)


if __name__ == "__main__":
    main(sys.argv[1:])
