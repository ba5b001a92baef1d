"""Tables for a pipe: no cell is cut for the sake of a terminal that is not there."""

from __future__ import annotations

import pytest
from rich.table import Table
from typer.testing import CliRunner

from services.cli import dlq
from services.cli.main import app
from services.cli.output import print_table
from services.common.kafka.settings import KafkaSettings


def test_cells_of_a_table_are_whole_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    cells = [
        "ro_01m84k63a3y3gtq0e2dfqjb8zn_0_yd98c9cr",
        "2026-11-23 16:17:50",
        "MalformedFrame: 8 bytes without a header",
    ]
    table = Table("id", "began (UTC)", "error")
    table.add_row(*cells)
    print_table(table)
    assert any(all(cell in line for cell in cells) for line in capsys.readouterr().out.splitlines())


def test_nothing_to_put_back_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_letters(_kafka: KafkaSettings, _codec: object) -> dict[str, object]:
        return {}

    monkeypatch.setattr(dlq, "answering", lambda kafka: kafka)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    monkeypatch.setattr(dlq, "read_letters", no_letters)
    done = CliRunner().invoke(
        app, ["dlq", "redrive", "--all"], env={"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9"}
    )
    assert (done.exit_code, done.output) == (0, "no dead letters\n")
