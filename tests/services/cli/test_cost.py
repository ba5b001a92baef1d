"""`fulgurite cost`: wrong input is refused by its name, and what is unknown is printed so."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fulgurite.cost.prices import Money
from fulgurite.cost.table import By, CostRow, CostTable
from services.cli.cost import show
from services.cli.main import app
from services.common.runtime.terminal import make_console


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("currency = ", "Invalid value"),
        ("currency = 'EUR'\n[tokens.policy]\ninput = -1\noutput = 1", "tokens"),
        ("\xff", "utf-8"),
        (None, "No such file"),
    ],
)
def test_a_broken_price_file_is_refused(text: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    done = CliRunner().invoke(app, ["cost", "--prices", str(path)])
    assert done.exit_code == 1
    assert f"the price file {path} cannot be read" in done.stderr
    assert words in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--by", "person"], 2, "'person'"),
        (["--since", "yesterday"], 1, "'yesterday'"),
        (["--archive-only"], 1, "--archive-only needs --archive DIR"),
        (["--archive", "/nowhere", "--archive-only"], 1, "/nowhere is not an archive"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], code: int, words: str) -> None:
    done = CliRunner().invoke(app, ["cost", *arguments])
    assert (done.exit_code, words in done.stderr) == (code, True), done.output


def printed(found: CostTable, capsys: pytest.CaptureFixture[str], limit: int = 20) -> str:
    show(found, make_console(), limit)
    return capsys.readouterr().out


def table(*rows: CostRow, total: CostRow, unpriced: tuple[str, ...] = ()) -> CostTable:
    currency = "EUR" if total.money else None
    return CostTable(by=By.run, currency=currency, rows=rows, total=total, unpriced=unpriced)


def test_an_empty_log_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(table(total=CostRow(key="sum")), capsys)
    assert out == "The log holds no call and no version in this time.\n"


def test_what_is_unknown_is_never_shown_as_0(capsys: pytest.CaptureFixture[str]) -> None:
    silent = CostRow(key="silent", calls=2, calls_of_unknown_tokens=2, updates_of_unknown_seconds=1)
    vllm = CostRow(key=None, calls=1, prompt=7, maybe_cached=7, sampled=3)
    mixed = CostRow(
        key="mixed", calls=2, prompt=9, cached=2, not_cached=3, maybe_cached=4, sampled=5
    )
    lines = printed(table(silent, vllm, mixed, total=mixed), capsys).splitlines()
    cells = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in lines]
    unknown = ["unknown"] * 3
    assert ["silent", "2", *unknown, "0", "0", "0", "unknown"] in cells
    assert ["no run", "1", "7", "unknown", "3", "0", "0", "0", "0"] in cells
    assert ["mixed", "2", "9", "2 + unknown", "5", "0", "0", "0", "0"] in cells
    assert "Of 4 prompt tokens it is unknown how many were cached" in lines[-1]


def test_the_sum_money_and_what_it_lacks_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    row = CostRow(key="run-a", calls=3, sampled=9, money=Money(1.0, 2.5))
    total = CostRow(
        key="sum", calls=6, sampled=18, money=Money(3.0, 3.0), discarded={"stale": 2, "late": 5}, calls_of_unknown_tokens=1,
        actions_of_unknown_tokens=1, updates_of_unknown_seconds=1,
    )  # fmt: skip
    other = CostRow(key="run-b", calls=3, sampled=9, money=Money(2.0, 0.5))
    out = printed(table(row, other, total=total, unpriced=("writer",)), capsys, limit=1)
    assert "1.0000 to 2.5000" in out
    assert "run-b" not in out
    for words in (
        "3.0000",
        "... and 1 more rows",
        "discarded tokens: 5 late, 2 stale",
        "1 of 6 calls have no usage",
        "1 actions have no token ids",
        "1 versions do not say what they took",
        "not in the sum of money: writer",
    ):
        assert words in out
