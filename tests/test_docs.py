"""README and docs/: links lead somewhere, documents exist that are named, every command is in the guide."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ikd.control.cli import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^()\s]+)\)")
SOURCES = {".c", ".h", ".json", ".md", ".py", ".service", ".socket", ".toml"}
DOCUMENT = re.compile(r"(?<![\w/])(?:docs/)?[\w-]+\.md\b(?: sections? \d)?")
CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def headings(page: Path) -> set[str]:
    """What a link may name behind the #, as GitHub makes it of headings."""
    titles = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda one: one.name)
def test_links_lead_somewhere(page: Path) -> None:
    """A section that was moved or renamed would leave readers at the top of a page, or at none."""
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    astray = []
    for link in LINK.findall(text):
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        if "://" not in link and not (target.exists() and (not heading or heading in headings(target))):
            astray.append(link)
    assert astray == []


def test_documents_that_are_named_exist() -> None:
    """A comment that cites a document which nobody outside has explains nothing; ours have no numbers."""
    folders = [
        ROOT / name for name in ("conf", "docs", "ikd", "offload", "policy", "sadb", "systemd", "tests")
    ]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in SOURCES]
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in [*files, ROOT / "README.md", ROOT / "Makefile"]
        for name in DOCUMENT.findall(path.read_text(encoding="utf-8"))
        if " section" in name or not ((ROOT / name).exists() or (ROOT / "docs" / name).exists())
    }
    assert missing == set()


def test_every_command_is_in_the_guide() -> None:
    """A command that only `ikctl --help` knows is found by nobody who reads."""
    guide = (ROOT / "docs" / "operator.md").read_text(encoding="utf-8")
    told = {word for line in re.findall(r"`ikctl ([a-z|]+)", guide) for word in line.split("|")}
    assert cli.commands.keys() - told == set()
