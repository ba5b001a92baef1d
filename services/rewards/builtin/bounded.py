"""A judgement on an answer that may have been written to end the judge: in a copy of this process,
for a bounded time.

What takes longer, wants more memory than there is or ends the copy is worth 0, as a wrong answer
is: a policy must not be able to void its rewards. A signal would not do, as it waits until Python's
next instruction, and one power of two integers may take for ever.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection

from services.rewards.errors import RewardFailed

_COPIES = multiprocessing.get_context("fork")
_FAILED = "failed: "


def within(timeout_s: float, judgement: Callable[[], float]) -> float:
    """Its value; 0 if there is none in time, or it raises anything but RewardFailed."""
    reader, writer = _COPIES.Pipe(duplex=False)
    with reader:
        copy = _COPIES.Process(target=_tell, args=(judgement, writer))
        copy.start()
        writer.close()
        try:
            told = reader.recv_bytes().decode() if reader.poll(timeout_s) else "0"
        except EOFError:
            told = "0"
        finally:
            copy.kill()
            copy.join()
            copy.close()
    if told.startswith(_FAILED):
        raise RewardFailed(told.removeprefix(_FAILED))
    return float(told)


def _tell(judgement: Callable[[], float], writer: Connection) -> None:
    try:
        told = str(judgement())
    except RewardFailed as error:
        told = f"{_FAILED}{error}"
    except BaseException:  # noqa: BLE001 - whatever an answer brings about is the answer's fault
        told = "0"
    writer.send_bytes(told.encode("utf-8", "backslashreplace"))
