"""Compute a score in a forked process with a time limit.

A policy can write an answer that crashes the check or never lets it end. If the process exceeds
the limit, runs out of memory or dies, the score is 0, as for a wrong answer: a policy must not be
able to void its rewards. A signal is no alternative: Python handles it before its next
instruction, and one power of two integers may take for ever.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection

from services.rewards.errors import RewardFailed

_COPIES = multiprocessing.get_context("fork")
_FAILED = "failed: "


def within(timeout_s: float, compute: Callable[[], float]) -> float:
    """Return what `compute` returns; 0 if it takes more than `timeout_s` seconds or raises.

    Raises RewardFailed where `compute` does.
    """
    reader, writer = _COPIES.Pipe(duplex=False)
    with reader:
        copy = _COPIES.Process(target=_send_score, args=(compute, writer))
        copy.start()
        writer.close()
        try:
            score = reader.recv_bytes().decode() if reader.poll(timeout_s) else "0"
        except EOFError:
            score = "0"
        finally:
            copy.kill()
            copy.join()
            copy.close()
    if score.startswith(_FAILED):
        raise RewardFailed(score.removeprefix(_FAILED))
    return float(score)


def _send_score(compute: Callable[[], float], writer: Connection) -> None:
    try:
        score = str(compute())
    except RewardFailed as error:
        score = f"{_FAILED}{error}"
    except BaseException:  # noqa: BLE001 - whatever an answer causes counts against the answer
        score = "0"
    writer.send_bytes(score.encode("utf-8", "backslashreplace"))
