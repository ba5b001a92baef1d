"""How often the index is written. Reading a real log: tests/integration/test_console_index.py."""

from __future__ import annotations

import pytest

from services.console.index.follower import gathering_time


@pytest.mark.parametrize(
    ("write_s", "gather_s"),
    [(0.0, 0.25), (0.02, 0.25), (0.05, 0.5), (0.15, 1.0), (20.0, 1.0)],
    ids=["nothing written", "an idle machine", "a slower one", "a busy one", "catching up"],
)
def test_the_longer_a_transaction_takes_the_more_records_it_gathers(
    write_s: float, gather_s: float
) -> None:
    assert gathering_time(write_s) == pytest.approx(gather_s)
