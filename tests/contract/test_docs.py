"""Links between the repository's pages lead somewhere, and the site's menu lists every page of
docs/.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)\s]+)\)")


FOLDERS = (".github", "benchmarks", "docs", "examples", "services", "tests")


def pages() -> list[Path]:
    """Every Markdown page of the repository."""
    return sorted(
        [
            *ROOT.glob("*.md"),
            *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md")),
        ]
    )


def prose(text: str) -> str:
    """The text without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site's generator make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text()), re.MULTILINE)
    return {anchor(heading) for heading in headings}


def anchor(heading: str) -> str:
    words = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return words.replace(" ", "-")


def broken_links(page: Path) -> list[str]:
    broken: list[str] = []
    for target in LINK.findall(prose(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        aimed = (page.parent / path).resolve() if path else page
        if not aimed.exists() or (
            fragment and aimed.suffix == ".md" and fragment not in anchors(aimed)
        ):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    assert not broken_links(page)


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_heading_that_a_link_names_is_in_the_link(page: Path) -> None:
    assert ")#" not in prose(page.read_text())


def test_no_text_installs_the_package_by_a_name_that_the_index_does_not_have() -> None:
    """Somebody else could take the name."""
    sources = [*pages(), *(ROOT / "services").rglob("*.py"), *(ROOT / "fulgurite").rglob("*.py")]
    found = [
        str(source.relative_to(ROOT))
        for source in sources
        if re.search(r"pip\s+install[\s\"]+['\"]?fulgurite\b", source.read_text())
    ]
    assert not found


def test_anchors_are_those_of_github() -> None:
    assert anchor("Runner (`fulgurite run`)") == "runner-fulgurite-run"
    assert (
        anchor("LoRA: a policy per role, several versions at once")
        == "lora-a-policy-per-role-several-versions-at-once"
    )
    assert (
        anchor("Local stack, `make demo` and `fulgurite up`")
        == "local-stack-make-demo-and-fulgurite-up"
    )


def test_the_menu_of_the_site_lists_every_page_of_the_documentation() -> None:
    config = (ROOT / "zensical.toml").read_text()
    listed = re.findall(
        r'"(docs/[^"]+\.md)"', str(tomllib.loads(config)["project"]["nav"]).replace("'", '"')
    )
    assert sorted(listed) == sorted(
        str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")
    )


def test_the_recipe_shows_the_example_as_it_is() -> None:
    page = (ROOT / "docs" / "how-to" / "train-from-your-code.md").read_text()
    [shown] = re.findall(r"^```python title.*?\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert (ROOT / "examples" / "own_harness" / "train.py").read_text().endswith(f"\n\n{shown}")
