"""Rollouts: what did it say?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.console.pages.address import Address, link
from services.console.pages.blocks import (
    Block,
    Cell,
    Column,
    Field,
    Filters,
    Heading,
    Link,
    Links,
    Notice,
    Table,
)
from services.console.pages.formats import ago, cell, count, fixed, number, short, task_text
from services.console.pages.reading import Asked, Row
from services.console.pages.rollout_links import tail
from services.console.pages.view import View

_PAGE = 50
"""Rows of a page."""
_SAMPLES = 5
"""Rollouts of each kind of sample."""

_SORTS: Mapping[str, str] = {
    "began": "began_at",
    "reward": "reward",
    "calls": "calls",
    "tokens": "prompt_tokens + completion_tokens",
}
"""What the table can be sorted by. These are constants: an address only chooses one."""

_WHERE = """
($1 IS NULL OR run_id = $1) AND ($2 IS NULL OR mode = $2)
    AND ($3 IS NULL OR list_contains(versions, $3))
    AND ($4 IS NULL OR outcome = $4)
    AND ($5 IS NULL OR failure = $5 OR ($5 = 'any' AND failure IS NOT NULL)
        OR ($5 = 'none' AND failure IS NULL))
    AND ($6 IS NULL OR list_contains(agents, $6))
    AND ($7 IS NULL OR reward >= $7) AND ($8 IS NULL OR reward <= $8)
    AND ($9 IS NULL OR contains(lower(answer), $9) OR contains(lower(task), $9)
        OR contains(lower(question), $9) OR contains(lower(rollout_id), $9)
        OR contains(lower(message), $9))
"""

_CHOICES = """
SELECT 'run' AS name, run_id AS value, max(began_at) AS last_at
FROM rollouts WHERE run_id IS NOT NULL GROUP BY run_id
UNION ALL SELECT 'version', version, max(began_at)
FROM rollouts WHERE version IS NOT NULL GROUP BY version
UNION ALL SELECT 'failure', failure, max(began_at)
FROM rollouts WHERE failure IS NOT NULL GROUP BY failure
UNION ALL SELECT 'agent', unnest(agents) AS agent, max(began_at) FROM rollouts GROUP BY agent
ORDER BY name, last_at DESC
"""


def content(asked: Asked) -> Sequence[Block]:
    """The page."""
    wanted = parameters(asked.address)
    total = asked.row(f"SELECT count(*) AS n FROM rollouts WHERE {_WHERE}", *wanted).get("n", 0)
    form = filters(asked.address, asked.rows(_CHOICES))
    kinds = samples_links(asked.address)
    if not total:
        return [form, kinds, nothing(asked.address)]
    kind = asked.address.get("samples")
    if kind in ("best", "worst", "random"):
        order = {"best": "reward DESC", "worst": "reward", "random": "hash(rollout_id)"}[kind]
        rows = asked.rows(
            f"SELECT * FROM rollouts WHERE {_WHERE} AND version IS NOT NULL AND reward IS NOT NULL "
            f"QUALIFY row_number() OVER (PARTITION BY version ORDER BY {order}, hash(rollout_id)) "
            f"<= {_SAMPLES} ORDER BY began_at DESC LIMIT 200",
            *wanted,
        )
        return [form, kinds, *samples(rows, kind, asked.now_ms)]
    column, descending = sorting(asked.address)
    page = asked.address.number("page", 1) or 1
    rows = asked.rows(
        f"SELECT * FROM rollouts WHERE {_WHERE} ORDER BY {_SORTS[column]} "
        f"{'DESC' if descending else 'ASC'} NULLS LAST, rollout_id "
        f"LIMIT {_PAGE} OFFSET {_PAGE * (page - 1)}",
        *wanted,
    )
    return [form, kinds, table(rows, asked.address, total, page, asked.now_ms)]


def parameters(address: Address) -> tuple[str | float | None, ...]:
    """The filters of an address, as the statement wants them."""
    get = address.get
    search = get("q")
    return (
        get("run"),
        get("mode"),
        get("version"),
        get("outcome"),
        get("failure"),
        get("agent"),
        _float(get("above")),
        _float(get("below")),
        search.lower() if search else None,
    )


def _float(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def sorting(address: Address) -> tuple[str, bool]:
    """The column that an address sorts by, and whether from the greatest."""
    column, _, order = (address.get("sort") or "began.desc").partition(".")
    return (column, order != "asc") if column in _SORTS else ("began", True)


def filters(address: Address, choices: Sequence[Row]) -> Filters:
    """The form."""

    def chosen(name: str, label: str, first: Sequence[tuple[str, str]] = ()) -> Field:
        values = [str(row["value"]) for row in choices if row["name"] == name][:200]
        current = address.get(name)
        if current and current not in (*values, *(value for value, _ in first)):
            values.append(current)
        options = (("", "all"), *first, *((value, value) for value in values))
        return Field(name, label, current or "", options)

    def fixed_choice(name: str, label: str, *values: str) -> Field:
        options = (("", "all"), *((value, value) for value in values))
        return Field(name, label, address.get(name) or "", options)

    return Filters(
        (
            Field("q", "Search task, question, answer, id", address.get("q") or "", kind="search"),
            chosen("run", "Run"),
            chosen("version", "Version"),
            fixed_choice("mode", "Mode", "train", "val", "live"),
            fixed_choice("outcome", "Outcome", "open", "finished", "failed", "timed_out"),
            chosen("failure", "Failure", (("any", "any"), ("none", "none"))),
            chosen("agent", "Role"),
            Field("above", "Reward from", address.get("above") or "", kind="number"),
            Field("below", "Reward to", address.get("below") or "", kind="number"),
        ),
        tuple(
            (name, value)
            for name in ("sort", "samples")
            if (value := address.get(name)) is not None
        ),
    )


def samples_links(address: Address) -> Links:
    """Links to the samples of each version."""
    names = {"all": None, "best": "best", "worst": "worst", "random": "random"}
    return Links(
        tuple(Link(name, address.but(samples=value, page=None)) for name, value in names.items()),
        f"Show all, or {_SAMPLES} of each version:",
        address.choice("samples", names, "all"),
    )


def nothing(address: Address) -> Notice:
    """What to do where no rollout fits."""
    if address.query:
        return Notice(
            "No rollout fits these filters.", link=Link("Show all rollouts", address.path)
        )
    return Notice(
        "No rollout is recorded yet. A rollout is one run of an agent on one task; an agent with a "
        "plain key makes one with its first call.",
        commands=('eval "$(fulgurite env)"', "python your_agent.py"),
    )


def table(rows: Sequence[Row], address: Address, total: int, page: int, now: int) -> Table:
    """A page of the table."""
    column, descending = sorting(address)

    def sortable(name: str, label: str, *, number: bool = False) -> Column:
        other = "asc" if name == column and descending else "desc"
        state = None if name != column else "descending" if descending else "ascending"
        return Column(
            label, number, sort=address.but(sort=f"{name}.{other}", page=None), sorted=state
        )

    pages: list[Link] = []
    if page > 1:
        pages.append(Link("← before", address.but(page=str(page - 1))))
    if total > page * _PAGE:
        pages.append(Link("next →", address.but(page=str(page + 1))))
    first = _PAGE * (page - 1) + 1
    return Table(
        (
            Column("Rollout"),
            sortable("began", "Began"),
            Column("Task"),
            Column("Last answer"),
            sortable("reward", "Reward", number=True),
            Column("Failure"),
            Column("Version"),
            Column("Mode"),
            sortable("calls", "Calls", number=True),
            sortable("tokens", "Tokens", number=True),
            Column("Group"),
        ),
        tuple(_row(row, now) for row in rows),
        f"{number(first)} to {number(first + len(rows) - 1)} of {count(total, 'rollout')}",
        "There is no such page.",
        tuple(pages),
    )


def _row(row: Row, now: int) -> tuple[Cell, ...]:
    return (
        cell(tail(row["rollout_id"]), link("/timeline", rollout=row["rollout_id"])),
        cell(ago(row["began_at"], now)),
        cell(task_text(row["task"]), most=110),
        cell(row["answer"], most=110),
        cell(fixed(row["reward"])),
        cell(row["failure"], tone="bad")
        if row["failure"]
        else cell(row["outcome"] if row["outcome"] != "finished" else None),
        cell(row["version"], _step(row["version"])),
        cell(row["mode"]),
        cell(row["calls"]),
        cell(row["prompt_tokens"] + row["completion_tokens"]),
        cell("group", link("/group", id=row["group_id"])),
    )


def _step(version: str | None) -> str | None:
    return link("/step", version=version) if version else None


def samples(rows: Sequence[Row], kind: str, now: int) -> list[Block]:
    """Samples of each version, the newest version first."""
    by_version: dict[str, list[Row]] = {}
    for row in rows:
        by_version.setdefault(str(row["version"]), []).append(row)
    blocks: list[Block] = [Heading(f"{kind.capitalize()} rollouts of each version")]
    for version, members in by_version.items():
        ordered = sorted(members, key=lambda row: row["reward"], reverse=kind != "worst")
        blocks.append(
            Table(
                (
                    Column("Rollout"),
                    Column("Task"),
                    Column("Last answer"),
                    Column("Reward", number=True),
                    Column("Failure"),
                    Column("Began"),
                ),
                tuple(
                    (
                        cell(tail(row["rollout_id"]), link("/timeline", rollout=row["rollout_id"])),
                        cell(task_text(row["task"]), most=160),
                        cell(row["answer"], most=300),
                        cell(fixed(row["reward"])),
                        cell(row["failure"], tone="bad" if row["failure"] else "plain"),
                        cell(ago(row["began_at"], now)),
                    )
                    for row in ordered
                ),
                short(version),
            )
        )
    return blocks


VIEW = View(
    "/rollouts",
    "Rollouts",
    "What did it say?",
    content,
    key="o",
    section="Behaviour",
    wide=True,
)
