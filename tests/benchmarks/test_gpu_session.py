"""The script of a session on a GPU, tried without one: parts end within their limits, one line each,
and the batches are those that were measured on an H200.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import gpu_session
from benchmarks.gpu_parts import BATCHES, PARTS, rows_of
from fulgurite.trajectories import forest


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the script; its exit status, and its lines."""

    def run(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
        monkeypatch.setattr("sys.argv", ["gpu_session", *arguments])
        status = gpu_session.main()
        return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def test_every_part_has_a_limit_within_ten_minutes() -> None:
    assert gpu_session.LIMITS_S.keys() == PARTS.keys()
    assert max(gpu_session.LIMITS_S.values()) < 600


@pytest.mark.parametrize(
    ("name", "in_rows", "in_forest"),
    [
        ("8 groups of 6, two turns", 11_328, 3_288),
        ("8 x 8, 4 turns, 1k system", 147_840, 81_480),
        ("4 x 8, 12 turns, 3k system", 280_320, 185_640),
        ("4 x 8, 8 turns, 4 branches", 530_560, 145_740),
    ],
)
def test_batches_have_the_tokens_that_were_measured(
    name: str, in_rows: int, in_forest: int
) -> None:
    for shared, expected in ((True, in_forest), (False, in_rows)):
        rows = rows_of(BATCHES[name], 128_256, shared=shared)
        assert sum(len(row.token_ids) for row in rows) == in_rows
        trie = forest.build([row.token_ids for row in rows], [row.trained for row in rows])
        assert len(trie) == expected


def test_a_part_that_fails_or_takes_too_long_stops_no_other(
    lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"no such part": 60, "lora": 0.2, "forest": 0}
    monkeypatch.setattr(gpu_session, "LIMITS_S", limits)
    status, told = lines("--tiny")
    assert status == 1
    assert [line["part"] for line in told] == list(limits)
    assert "exit status 2" in told[0]["failed"]
    assert "invalid choice" in told[0]["failed"]
    assert told[1]["failed"].startswith("not done after 1 s")
    assert told[2]["skipped"] == "no time is left"


def test_a_part_is_run_alone_by_its_name(lines: Any) -> None:
    status, [line] = lines("lora", "--tiny")
    assert status == 0, line
    assert line["part"] == "lora"
    assert line["result"].keys() == {"64 tokens", "128 tokens"}
    assert all(found["seconds"] > 0 for found in line["result"].values())
    with pytest.raises(SystemExit):
        lines("lore")


@pytest.mark.engine
def test_all_ways_of_a_batch_make_the_same_step(lines: Any) -> None:
    status, [line] = lines("forest", "--tiny")
    assert status == 0, line
    for name in BATCHES:
        found = {
            way: line["result"][f"{name}: {way}"] for way in ("forest", "verl without padding")
        }
        norms = [one["grad_norm"] for one in found.values()]
        assert norms[0] == pytest.approx(norms[1], rel=0.05), "bf16 rounds each way differently"
        packed = line["result"][f"{name}: packed rows"]
        assert packed["computed_tokens"] == packed["row_tokens"]
        assert found["forest"]["computed_tokens"] < packed["row_tokens"]
